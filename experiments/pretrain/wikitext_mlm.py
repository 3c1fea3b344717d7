"""Masked pretraining on wikitext-2: the data and tokenizer of wikitext_causal.py, the model and task of configs/tiny_mlm.py.

python -m lm.main --config=experiments/pretrain/wikitext_mlm.py --config.data_dir=DATA --workdir=runs/wikitext_mlm
"""

from ml_collections import ConfigDict

from experiments.pretrain import wikitext_causal


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "smoke"."""
  config = wikitext_causal.get_config(arg)
  del config.task, config.evaluators
  config.task = dict(name="mlm", mask_rate=0.15)
  config.model.name = "bert-tiny"
  return config
