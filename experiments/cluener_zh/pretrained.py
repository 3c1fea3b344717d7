"""The masked model of experiments/pretrain/tnews_mlm.py on CLUENER (Xu et al. 2020): a tag per character, ten types.

python -m lm.main --config=experiments/cluener_zh/pretrained.py --config.data_dir=DATA --workdir=runs/cluener/pretrained

DATA has cluener/train.json and cluener/dev.json, 10,748 and 1,343 sentences of at most 50 characters; a row takes them whole.
"""

from ml_collections import ConfigDict

from experiments import minilm


def get_config(arg: str = "runs/tnews_mlm") -> ConfigDict:
  """arg: the pretrained workdir."""
  data = dict(
    name="spans",
    path="cluener/train.json",
    validation="cluener/dev.json",
    test="cluener/dev.json",  # the test set has no labels; nothing is chosen by it
    on_bad_row="skip",  # in one training sentence an entity stands in another, which tags of words cannot say
  )
  return minilm.recipe(
    init_from=arg or "runs/tnews_mlm",
    task=dict(name="tag", words="character"),
    data=data,
    optimizer=minilm.adamw(1e-3, "10%"),
    seq_len=64,
    length_buckets=(24, 40, 64),
    best_metric="",
  )
