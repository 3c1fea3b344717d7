"""What GLUE and CLUE share: what their runs reached, task by task and on average, and the files that their servers take."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm
from lm import record
from lm.config import ConfigError
from lm.data.rows import RowFile
from lm.main import set_up_process
from lm.predictor import Predictor
from lm.report import Table

Write = Callable[[str, Predictor, Path, Path], Iterable[Path]]  # (task, model, data, output folder) -> files written


def scores(runs: Path, metrics: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
  """Metrics by task of those runs that are there and finished, at their last step, from <runs>/<task>/summary.json.

  Raises:
    ConfigError: there is none.
  """
  summaries = {task: record.read_summary(runs / task) for task in metrics}
  found = {task: summary["metrics"] for task, summary in summaries.items() if summary.get("status") == "finished"}
  if not found:
    raise ConfigError(f"--runs={runs}: holds no finished run of {', '.join(metrics)}")
  return {task: {name: values[name] for name in metrics[task]} for task, values in found.items()}


def average(found: Mapping[str, Mapping[str, float]]) -> float:
  """The mean over tasks of the mean of their metrics, times 100, as both suites count it."""
  means = [sum(values.values()) / len(values) for values in found.values()]
  return 100 * sum(means) / len(means)


def table(title: str, found: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Sequence[str]]) -> Table:
  """A row a task with its development scores, and their average, which says of how many tasks it is."""
  words = lambda name: name.removeprefix("eval/").replace("validation/", "").replace("test/", "mismatched ")
  rows = [[task, ", ".join(f"{words(name)} {100 * value:.1f}" for name, value in found[task].items())] for task in found]
  of = f"average of {len(found)} of {len(metrics)} tasks"
  return Table(title, ["task", "development score"], [*rows, [of, f"{average(found):.1f}"]], justify="left")


def read_rows(path: Path, columns: Sequence[str], **reading: Any) -> list[dict[str, Any]]:
  """All rows of a file in its order; ConfigError for one that is bad, since a server wants an answer to every row."""
  file = RowFile(str(path), "--data_dir", **reading)
  rows = []
  for number, cells in file.rows([("--data_dir", column) for column in columns]):
    if isinstance(cells, str):
      raise ConfigError(f"{file.where(number)}: {cells}")
    rows.append(cells)
  return rows


def examples(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *names: str) -> list[dict[str, Any]]:
  """What a Predictor reads of rows: the columns, called by names in their order, of which there may be more."""
  return [dict(zip(names, (row[column] for column in columns), strict=False)) for row in rows]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
  """An object a line."""
  path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
  return path


def main(doc: str, title: str, metrics: Mapping[str, Sequence[str]], write: Write) -> int:
  """The command of a suite. Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=Path, required=True, help="folder with a workdir of each task, by its name")
  parser.add_argument("--data_dir", type=Path, help="as the runs had it; writes the files for the server")
  parser.add_argument("--output", type=Path, default=Path("submission"), help="folder for them")
  args = parser.parse_args()
  try:
    set_up_process()
    found = scores(args.runs, metrics)
    table(title, found, metrics).print()
    for task in found if args.data_dir else ():
      args.output.mkdir(parents=True, exist_ok=True)
      for path in write(task, lm.load(args.runs / task), args.data_dir, args.output):
        print(path)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0
