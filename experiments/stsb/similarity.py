"""STS-B (Cer et al. 2017): how alike two sentences are, 0 to 5, by Pearson and Spearman, with all-MiniLM-L6-v2 over both.

python -m lm.main --config=experiments/stsb/similarity.py --config.data_dir=DATA --workdir=runs/stsb

DATA has stsb/stsb-en-train.csv and stsb-en-dev.csv, sentence, sentence and score, without names of columns.
"""

from ml_collections import ConfigDict

from experiments import minilm


def get_config(arg: str = "") -> ConfigDict:
  """arg: none."""
  if arg:
    raise ValueError(f"experiments/stsb/similarity.py:{arg}: takes no argument")
  files = dict(path="stsb/stsb-en-train.csv", validation="stsb/stsb-en-dev.csv")  # test is cut from train
  columns = ("first", "second", "score")
  data = dict(name="table", text=columns[:2], label="score", label_type="number", columns=columns, **files)
  return minilm.recipe(task=dict(name="regress", pooling="mean"), data=data, total_steps="4 epochs")
