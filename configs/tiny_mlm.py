"""Masked pretraining (BERT's recipe) on the documentation inside Python, with the backbone and optimizer of configs/tiny.py.

python -m lm.main --config=configs/tiny_mlm.py --workdir=runs/tiny_mlm

15% of positions, 80/10/10, masks drawn anew every epoch. `configs/tiny_mlm.py:smoke` is a half-minute run.
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "smoke"."""
  config = tiny.get_config(arg)
  del config.task, config.evaluators
  config.task = dict(name="mlm", mask_rate=0.15)
  config.model.name = "bert-tiny"
  config.total_steps = 20 if arg == "smoke" else 200
  return config
