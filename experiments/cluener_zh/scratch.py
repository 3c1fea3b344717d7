"""The same network, data and optimizer as pretrained.py from random weights: what pretraining is worth.

python -m lm.main --config=experiments/cluener_zh/scratch.py --config.data_dir=DATA --workdir=runs/cluener/scratch \
  --config.tokenizer=DATA/tokenizers/bert-base-chinese
"""

from ml_collections import ConfigDict

from experiments.cluener_zh import pretrained
from experiments.pretrain import tnews_mlm


def get_config(arg: str = "") -> ConfigDict:
  """No argument."""
  if arg:
    raise ValueError(f"experiments/cluener_zh/scratch.py:{arg}: takes no argument")
  return tnews_mlm.from_scratch(pretrained.get_config())
