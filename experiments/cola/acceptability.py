"""CoLA (Warstadt et al. 2019): is a sentence acceptable English, by Matthews correlation, with all-MiniLM-L6-v2.

python -m lm.main --config=experiments/cola/acceptability.py --config.data_dir=DATA --workdir=runs/cola

DATA has cola/in_domain_train.tsv and in_domain_dev.tsv, the raw public files: source, label, mark, sentence, without names.
"""

from ml_collections import ConfigDict

from experiments import minilm


def get_config(arg: str = "") -> ConfigDict:
  """arg: none."""
  if arg:
    raise ValueError(f"experiments/cola/acceptability.py:{arg}: takes no argument")
  files = dict(path="cola/in_domain_train.tsv", validation="cola/in_domain_dev.tsv", test="cola/in_domain_dev.tsv")
  columns = ("source", "label", "mark", "sentence")
  data = dict(name="table", text=("sentence",), label="label", columns=columns, quoting=False, **files)
  return minilm.recipe(task="classify", data=data, total_steps="5 epochs", best_metric="eval/validation/matthews")
