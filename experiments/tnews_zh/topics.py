"""TNEWS of CLUE (Xu et al. 2020): the topic of a headline, 15 of them, from the masked model of experiments/pretrain.

python -m lm.main --config=experiments/tnews_zh/topics.py --config.data_dir=DATA --workdir=runs/tnews

DATA has tnews/train.json; validation and test are cut from it by the hash of the headline. The base is runs/tnews_mlm, whose
corpus are the same headlines without their labels; `--config.init_from=DIR
--config.optimizer.learning_rate=3e-5` takes another one, such as a Chinese BERT.
"""

from ml_collections import ConfigDict

from experiments import minilm
from experiments.pretrain import tnews_mlm

STARTS = ("pretrained", "scratch")


def get_config(arg: str = "pretrained") -> ConfigDict:
  """arg: pretrained, or scratch: from random weights, with `--config.tokenizer`."""
  if arg not in STARTS:
    raise ValueError(f"experiments/tnews_zh/topics.py:{arg}: accepted are {', '.join(STARTS)}")
  data = dict(name="table", path="tnews/train.json", text=("sentence",), label="label_desc")
  task = dict(name="classify", pooling="mean")
  rows = dict(seq_len=64, length_buckets=(32, 64))
  config = minilm.recipe(init_from="runs/tnews_mlm", task=task, data=data, optimizer=minilm.adamw(1e-3), **rows)
  return tnews_mlm.from_scratch(config) if arg == "scratch" else config
