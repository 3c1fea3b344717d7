"""Causal pretraining on wikitext-2 with the model and optimizer of configs/tiny.py; see README.md beside this file.

python -m lm.main --config=experiments/pretrain/wikitext_causal.py --config.data_dir=DATA --workdir=runs/wikitext_causal

DATA holds wikitext-2/train.txt and wikitext-2/valid.txt, a paragraph per line; the tokenizer is trained on the first.
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "smoke"."""
  config = tiny.get_config(arg)
  del config.data
  config.data = dict(name="text", path=("wikitext-2/train.txt",), validation=("wikitext-2/valid.txt",))
  if arg != "smoke":
    config.tokenizer = "runs/wikitext.model"
    config.total_steps = 600
    config.eval_every = "50%"
  return config
