"""MRPC (Dolan and Brockett 2005): do two sentences say the same, by F1 and accuracy, with all-MiniLM-L6-v2 over both at once.

python -m lm.main --config=experiments/mrpc/paraphrase.py --config.data_dir=DATA --workdir=runs/mrpc

DATA has mrpc/msr_paraphrase_train.txt, a tab-separated table whose quotes do not pair up. Validation and test are cut from it.
"""

from ml_collections import ConfigDict

from experiments import minilm


def get_config(arg: str = "") -> ConfigDict:
  """arg: none."""
  if arg:
    raise ValueError(f"experiments/mrpc/paraphrase.py:{arg}: takes no argument")
  texts = ("#1 String", "#2 String")
  path = "mrpc/msr_paraphrase_train.txt"
  data = dict(name="table", path=path, text=texts, label="Quality", delimiter="\\t", quoting=False)
  return minilm.recipe(task="classify", data=data, total_steps="5 epochs", best_metric="eval/validation/f1")
