"""CLUE's development scores and average over finished runs, and with --data_dir the files that its server takes.

python -m experiments.clue.submit --runs=runs/clue --data_dir=DATA --output=submission

runs/clue/<task> is the workdir of `experiments/clue/task.py:<task>`. The last checkpoint is scored and answers. The average is
that of the tasks of CLUE 1.1 that have a run, to which cmnli does not belong. A file has an object a line with a row's id and
label, those of cmrc and chid one object by id.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import suite
from experiments.clue.task import TASKS, Benchmark
from lm.data import paths
from lm.files import write_json
from lm.predictor import Predictor

CALLED = {"tnews": "tnews11", "iflytek": "iflytek", "wsc": "cluewsc11", "cmrc": "cmrc2018", "chid": "chid11", "c3": "c311"}
CALLED |= {"ocnli": "ocnli_50k", "cmnli": "cmnli", "afqmc": "afqmc", "csl": "csl"}
METRICS = {name: (task.metric,) for name, task in TASKS.items() if name != "cmnli"}
NAMED = ("tnews", "iflytek")  # whose labels have names beside numbers


def write(name: str, model: Predictor, data: Path, output: Path) -> Iterator[Path]:
  """<task>_predict.json of the test file."""
  task, target = TASKS[name], output / f"{CALLED[name]}_predict.json"
  test = data / task.folder / task.files[2]
  if task.kind == "span_qa":
    rows = asked = list(_questions(test))
  else:
    rows = suite.read_rows(test, task.text)
    names = ("context", "question") if task.kind == "choose" else ("text", "text_pair")
    asked = suite.examples(rows, task.text, *names)
  if task.kind == "choose":
    asked = [example | {"choices": row["choices"]} for example, row in zip(asked, rows, strict=True)]
  found = list(zip(rows, model.predict(asked), strict=True))
  if name == "cmrc":
    write_json(target, {row["id"]: said["answer"] for row, said in found})
  elif name == "chid":
    write_json(target, {row["id"]: int(said["label"]) for row, said in found})
  else:
    numbers = _numbers(task, data) if name in NAMED else {}
    lines = [_line(i, row, said["label"], numbers) for i, (row, said) in enumerate(found)]
    suite.write_jsonl(target, [line | {"label": int(line["label"])} for line in lines] if name == "c3" else lines)
  yield target


def _questions(path: Path) -> Iterator[dict[str, str]]:
  """What is asked in a file in SQuAD's form, whatever it has for answers."""
  for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
    for part in article["paragraphs"]:
      yield from ({"id": asked["id"], "text": asked["question"], "text_pair": part["context"]} for asked in part["qas"])


def _numbers(task: Benchmark, data: Path) -> dict[str, str]:
  """What the training rows call a label by number, by its name."""
  with paths.opened_text(str(data / task.folder / task.files[0]), "utf-8-sig") as stream:
    rows = map(json.loads, filter(str.strip, stream))
    return {row[task.label]: row["label"] for row in rows}


def _line(number: int, row: Mapping[str, Any], label: str, numbers: Mapping[str, str]) -> dict[str, Any]:
  line = {"id": row.get("id", number), "label": numbers.get(label, label)}
  return line | ({"label_desc": label} if label in numbers else {})


if __name__ == "__main__":
  sys.exit(suite.main(__doc__, "CLUE", METRICS, write))
