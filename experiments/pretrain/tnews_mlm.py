"""Masked pretraining on the headlines of TNEWS (Chinese) with BERT's Chinese vocabulary, a token per character.

python -m lm.main --config=experiments/pretrain/tnews_mlm.py --config.data_dir=DATA --workdir=runs/tnews_mlm \
  --config.tokenizer=DATA/tokenizers/bert-base-chinese

DATA holds tnews/train.json, a JSON object per line; a tenth of its headlines, chosen by their hash, is held out. The
tokenizer is the folder of bert-base-chinese, of which vocab.txt is enough.
"""

from ml_collections import ConfigDict

from experiments.pretrain import wikitext_mlm


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "smoke"."""
  config = wikitext_mlm.get_config(arg)
  del config.data
  config.data = dict(name="table", path="tnews/train.json", text=("sentence",))
  return config


def from_scratch(config: ConfigDict) -> ConfigDict:
  """A fine-tuning of what was pretrained here, with the same network of random weights: what pretraining is worth."""
  del config.init_from
  config.model = get_config().model
  return config
