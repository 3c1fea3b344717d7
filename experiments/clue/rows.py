"""Brings the tasks of CLUE that are no tables into rows: DATA/clue/rows/<task>/train.jsonl, dev.jsonl and test.jsonl.

python -m experiments.clue.rows --data_dir=DATA

cmnli and ocnli lose the pairs on which annotators did not agree (label "-"). wsc marks what may be meant with [ ] and the
pronoun with _ _, and asks about the former. csl joins the keywords. chid becomes a row for each blank: the text around it and
ten idioms. c3 becomes a row for each question; those with fewer than four answers get "无效答案", which is never right. Tasks
whose folder is not there are left out, and that is said.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments import suite
from experiments.clue.task import ROWS
from lm.config import ConfigError

SPLITS = ("train", "dev", "test")
AROUND = 40  # characters of the text that stand on each side of a blank
BLANK, NOTHING, CHOICES = "____", "无效答案", 4
Row = dict[str, Any]


def pairs(row: Row) -> Iterator[Row]:
  """cmnli, ocnli: the row, unless it has no agreed label."""
  if row.get("label") != "-":
    yield {name: row[name] for name in ("id", "sentence1", "sentence2", "label") if name in row}


def wsc(row: Row) -> Iterator[Row]:
  """Two places of a text: what it may be about, and the pronoun. Marks that stand later are put in first."""
  target, text = row["target"], row["text"]
  spans = [(target["span1_index"], target["span1_text"], "[]"), (target["span2_index"], target["span2_text"], "__")]
  for start, words, (opening, closing) in sorted(spans, reverse=True):
    text = text[:start] + opening + text[start : start + len(words)] + closing + text[start + len(words) :]
  yield {"sentence1": text, "sentence2": target["span1_text"]} | {name: row[name] for name in ("id", "label") if name in row}


def csl(row: Row) -> Iterator[Row]:
  """Whether all keywords are those of the abstract."""
  kept = {name: row[name] for name in ("id", "label") if name in row}
  yield {"keywords": "；".join(row["keyword"]), "abstract": row["abst"]} | kept


def chid(row: Row, answers: dict[str, int]) -> Iterator[Row]:
  """A row for each blank of each text; other blanks are left empty."""
  for text in row["content"]:
    for found in re.finditer(r"#idiom\d+#", text):
      name = found[0]
      bare = lambda part: re.sub(r"#idiom\d+#", BLANK, part)
      context = bare(text[: found.start()])[-AROUND:] + BLANK * 2 + bare(text[found.end() :])[:AROUND]
      label = {"label": answers[name]} if name in answers else {}
      yield {"id": name, "context": context, "choices": row["candidates"]} | label


def c3(row: list) -> Iterator[Row]:
  """A row for each question on a text or a dialogue."""
  lines, questions, _ = row
  for asked in questions:
    choices = [*asked["choice"], *[NOTHING] * (CHOICES - len(asked["choice"]))]
    label = {"label": asked["choice"].index(asked["answer"])} if asked.get("answer") else {}
    kept = {"id": asked["id"]} if "id" in asked else {}
    yield kept | {"context": "\n".join(lines), "question": asked["question"], "choices": choices} | label


def _lines(path: Path) -> list[Row]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _of(convert: Callable[[Row], Iterator[Row]], folder: Path, split: str) -> Iterator[Row]:
  for row in _lines(_file(folder, f"{split}.json", f"{split}.50k.json")):
    yield from convert(row)


def _of_chid(folder: Path, split: str) -> Iterator[Row]:
  told = folder / f"{split}_answer.json"
  answers = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
  for row in _lines(_file(folder, f"{split}1.1.json", f"{split}.json")):
    yield from chid(row, answers)


def _of_c3(folder: Path, split: str) -> Iterator[Row]:
  names = [("test1.1.json", "test1.0.json")]
  if split != "test":
    names = [(f"{kind}-{split}.json", f"c3-{kind}-{split}.json") for kind in "dm"]
  for alternatives in names:
    for row in json.loads(_file(folder, *alternatives).read_text(encoding="utf-8")):
      yield from c3(row)


def _file(folder: Path, *names: str) -> Path:
  found = next((folder / name for name in names if (folder / name).is_file()), None)
  if found is None:
    raise ConfigError(f"--data_dir: {folder} has no {' or '.join(names)}")
  return found


# By task, its folder and how a split of it is read.
READERS: dict[str, tuple[str, Callable[[Path, str], Iterator[Row]]]] = {
  "cmnli": ("cmnli_public", lambda folder, split: _of(pairs, folder, split)),
  "ocnli": ("ocnli_public", lambda folder, split: _of(pairs, folder, split)),
  "wsc": ("cluewsc2020_public", lambda folder, split: _of(wsc, folder, split)),
  "csl": ("csl_public", lambda folder, split: _of(csl, folder, split)),
  "chid": ("chid_public", _of_chid),
  "c3": ("c3_public", _of_c3),
}


def convert(data: Path) -> Iterator[str]:
  """Writes the rows of every task whose folder is there; a line about each."""
  if not (data / "clue").is_dir():
    raise ConfigError(f"--data_dir={data}: has no folder clue")
  for task, (name, read) in READERS.items():
    folder, target = data / "clue" / name, data / ROWS / task
    if not folder.is_dir():
      yield f"{task}: left out, there is no {folder}"
      continue
    counts = []
    for split in SPLITS:
      rows = list(read(folder, split))
      target.mkdir(parents=True, exist_ok=True)
      suite.write_jsonl(target / f"{split}.jsonl", rows)
      counts.append(f"{split} {len(rows):,}")
    yield f"{task}: {', '.join(counts)} rows in {target}"


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data_dir", type=Path, required=True, help="folder that has clue/")
  try:
    for line in convert(parser.parse_args().data_dir):
      print(line)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
