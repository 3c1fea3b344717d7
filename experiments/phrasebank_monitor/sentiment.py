"""Financial PhraseBank (Malo et al. 2014): positive, neutral or negative for an investor, with all-MiniLM-L6-v2.

python -m lm.main --config=experiments/phrasebank_monitor/sentiment.py:all --config.data_dir=DATA --workdir=runs/phrasebank

DATA has financial_phrasebank/Sentences_AllAgree.txt and Sentences_50Agree.txt, `sentence@label` in ISO-8859-1. They have no
official split: validation and test are cut by the hash of the sentence.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import minilm

# Which sentences, by the annotators that agree on them.
ARGUMENTS = {"all": "AllAgree", "50": "50Agree"}


def make_data(arg: str) -> dict[str, Any]:
  """Options of the source, by argument."""
  return dict(
    name="table",
    path=f"financial_phrasebank/Sentences_{ARGUMENTS[arg]}.txt",
    delimiter="@",
    columns=("text", "label"),
    label="label",
    quoting=False,
    encoding="iso-8859-1",
  )


def get_config(arg: str = "all") -> ConfigDict:
  """arg: all (2,264 sentences that all annotators read alike) or 50 (4,846, half of them or more)."""
  if arg not in ARGUMENTS:
    raise ValueError(f"experiments/phrasebank_monitor/sentiment.py:{arg}: accepted are {', '.join(ARGUMENTS)}")
  task = dict(name="classify", pooling="mean", class_weights=("balanced",))
  return minilm.recipe(task=task, data=make_data(arg), total_steps="5 epochs", best_metric="eval/validation/macro_f1")
