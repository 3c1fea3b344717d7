"""The same network, data and optimizer as full.py from random weights: what pretraining is worth.

python -m lm.main --config=experiments/docstring_module/scratch.py --workdir=runs/docstring_module/scratch-s0
"""

from ml_collections import ConfigDict

from configs import tiny_mlm
from experiments.docstring_module import full


def get_config(arg: str = "") -> ConfigDict:
  """No argument."""
  if arg:
    raise ValueError(f"experiments/docstring_module/scratch.py:{arg}: takes no argument")
  config, pretraining = full.get_config(), tiny_mlm.get_config()
  del config.init_from
  config.tokenizer, config.model = pretraining.tokenizer, pretraining.model
  return config
