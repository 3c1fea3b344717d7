"""ChnSentiCorp: is a Chinese review of a hotel, a laptop or a book a good one, from the masked model of experiments/pretrain.

python -m lm.main --config=experiments/chnsenticorp_zh/reviews.py --config.data_dir=DATA --workdir=runs/chnsenticorp

DATA has chnsenticorp/train.tsv and dev.tsv. `--config.init_from=DIR --config.optimizer.learning_rate=3e-5`
takes another base, such as a Chinese BERT.
"""

from ml_collections import ConfigDict

from experiments import minilm
from experiments.pretrain import tnews_mlm

STARTS = ("pretrained", "scratch")


def get_config(arg: str = "pretrained") -> ConfigDict:
  """arg: pretrained, or scratch: from random weights, with `--config.tokenizer`."""
  if arg not in STARTS:
    raise ValueError(f"experiments/chnsenticorp_zh/reviews.py:{arg}: accepted are {', '.join(STARTS)}")
  files = dict(path="chnsenticorp/train.tsv", validation="chnsenticorp/dev.tsv")  # test is cut from train
  data = dict(name="table", text=("text_a",), label="label", quoting=False, **files)
  rows = dict(seq_len=256, length_buckets=(64, 128, 256))
  task = dict(name="classify", pooling="mean")
  config = minilm.recipe(init_from="runs/tnews_mlm", task=task, data=data, optimizer=minilm.adamw(1e-3), **rows)
  return tnews_mlm.from_scratch(config) if arg == "scratch" else config
