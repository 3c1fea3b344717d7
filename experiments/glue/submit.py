"""GLUE's development scores and average over finished runs, and with --data_dir the files that its server takes.

python -m experiments.glue.submit --runs=runs/glue --data_dir=DATA --output=submission

runs/glue/<task> is the workdir of `experiments/glue/task.py:<task>`. The last checkpoint is scored and answers; that of MNLI
answers the diagnostic set (AX.tsv) too, of DATA/glue/diagnostic or DATA/glue/MNLI. The average is over tasks that have a run.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import suite
from experiments.glue.task import READING, TASKS
from lm.predictor import Predictor

AX = "diagnostic/diagnostic.tsv", "MNLI/diagnostic.tsv"
WORDS = ("mnli", "qnli", "rte")  # whose answers are the names of classes; those of others are their numbers


def write(name: str, model: Predictor, data: Path, output: Path) -> Iterator[Path]:
  """<Task>.tsv of every test file: a line of names, then the number of each row and its prediction."""
  task = TASKS[name]
  folder = data / "glue" / task.folder
  files = [(task.folder + suffix, folder / file) for suffix, file in task.tests]
  if name == "mnli":
    found = [path for path in (data / "glue" / file for file in AX) if path.is_file()]
    files += [("AX", path) for path in found[:1]]
    if not found:
      print(f"no AX.tsv: {data / 'glue'} has no {' or '.join(AX)}", file=sys.stderr)
  for called, path in files:
    rows = suite.read_rows(path, task.text, **READING)
    found = model.predict(suite.examples(rows, task.text, "text", "text_pair"))
    lines = [f"{i}\t{_answer(name, prediction)}\n" for i, prediction in enumerate(found)]
    target = output / f"{called}.tsv"
    target.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8")
    yield target


def _answer(name: str, prediction: Mapping[str, Any]) -> str:
  if TASKS[name].number:
    return f"{min(max(prediction['value'], 0.0), 5.0):.3f}"
  return prediction["label"] if name in WORDS else f"{list(prediction['scores']).index(prediction['label'])}"


if __name__ == "__main__":
  sys.exit(suite.main(__doc__, "GLUE", {name: task.metrics for name, task in TASKS.items()}, write))
