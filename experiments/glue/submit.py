"""GLUE's development scores and average over finished runs, and with --data_dir the files that its server takes.

python -m experiments.glue.submit --runs=runs/glue --data_dir=DATA --output=submission

runs/glue/<task> is the workdir of `experiments/glue/task.py:<task>`. The best checkpoint answers; the run of MNLI answers the
diagnostic set (AX.tsv) too where DATA/glue/MNLI/diagnostic.tsv is there. The average is that of the tasks that have a run.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import suite
from experiments.glue.task import READING, TASKS, Benchmark
from lm.predictor import Predictor

AX = "diagnostic.tsv"


def write(name: str, model: Predictor, data: Path, output: Path) -> Iterator[Path]:
  """<Task>.tsv of every test file: a line of names, then the number of each row and its prediction."""
  task = TASKS[name]
  folder = data / "glue" / task.folder
  files = [(task.folder + suffix, folder / file) for suffix, file in task.tests]
  files += [("AX", folder / AX)] if name == "mnli" and (folder / AX).is_file() else []
  for called, path in files:
    rows = suite.read_rows(path, task.text, **READING)
    found = model.predict(suite.examples(rows, task.text, "text", "text_pair"))
    lines = [f"{i}\t{_answer(task, prediction)}\n" for i, prediction in enumerate(found)]
    target = output / f"{called}.tsv"
    target.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8")
    yield target


def _answer(task: Benchmark, prediction: Mapping[str, Any]) -> str:
  return f"{min(max(prediction['value'], 0.0), 5.0):.3f}" if task.number else prediction["label"]


if __name__ == "__main__":
  sys.exit(suite.main(__doc__, "GLUE", {name: task.metrics for name, task in TASKS.items()}, write))
