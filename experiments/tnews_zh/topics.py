"""TNEWS of CLUE (Xu et al. 2020): the topic of a headline, 15 of them, from the masked model of experiments/pretrain.

python -m lm.main --config=experiments/tnews_zh/topics.py --config.data_dir=DATA --workdir=runs/tnews

DATA has tnews/train.json; validation and test are cut from it by the hash of the headline. The base is runs/tnews_mlm, whose
corpus are the same headlines without their labels; `--config.init_from=DIR` takes another one, such as a Chinese BERT.
"""

from ml_collections import ConfigDict

from experiments import minilm


def get_config(arg: str = "") -> ConfigDict:
  """arg: none."""
  if arg:
    raise ValueError(f"experiments/tnews_zh/topics.py:{arg}: takes no argument")
  data = dict(name="table", path="tnews/train.json", text=("sentence",), label="label_desc")
  task = dict(name="classify", pooling="mean")
  rows = dict(seq_len=64, length_buckets=(32, 64))
  return minilm.recipe(init_from="runs/tnews_mlm", task=task, data=data, optimizer=minilm.adamw(1e-3), **rows)
