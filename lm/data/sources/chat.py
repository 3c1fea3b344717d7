"""Conversations and preferences in files: jsonl, JSON lists, parquet, csv. Every layout of `lm.data.dialogue` is read."""

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from typing import Any, ClassVar

from lm.config import ConfigError
from lm.data import dialogue, paths
from lm.data.rows import BAD_ROWS, RowFile
from lm.data.source import SPLITS, check_split, list_files
from lm.data.sources import table

SETTINGS = {"train": "path", "validation": "validation", "test": "test"}
KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")

Row = tuple[dict[str, Any], str, int]  # example, file, line (or row) of the file


@dataclasses.dataclass(frozen=True)
class Chat:
  """Examples {"messages": [{"role", "content"}, ...]}, or {"prompt", "chosen", "rejected"} where a row has a preference.

  A split without files is cut from `path` by the hash of what an example begins with (all before its last answer, or the
  prompt of a pair), as `table` cuts: train, validation and test have 80, 10 and 10 percent, and no prompt stands in two
  splits. A row is bad if its JSON is, if it has none of the layouts, an unknown role, an empty text or no answer.
  """

  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: tuple[str, ...] = ()  # files, folders or globs of the training split, or of all splits
  validation: tuple[str, ...] = ()  # of the validation split; unset is cut from path
  test: tuple[str, ...] = ()  # of the test split; unset is cut from path
  columns: tuple[str, ...] = ()  # other names for columns, OURS=COLUMN, such as prompt=question,response=best_answer
  on_bad_row: str = "error"  # or skip, which leaves bad rows out and counts them

  def __post_init__(self):
    list_files(self, (*SETTINGS.values(), "columns"))
    check_split(self.split)
    if not self.path:
      raise ConfigError(f"data.path='': not set; accepted are files that end in {', '.join(KINDS)}, folders and globs")
    if self.on_bad_row not in BAD_ROWS:
      raise ConfigError(f"data.on_bad_row={self.on_bad_row!r}: accepted are {', '.join(BAD_ROWS)}")
    for entry in self.columns:
      ours, _, column = entry.partition("=")
      if not ours or not column:
        raise ConfigError(f"data.columns={entry!r}: expected OURS=COLUMN, such as prompt=question")
    for split, files in self._files.items():
      for file in files:
        if file.suffix not in KINDS:
          raise ConfigError(f"data.{SETTINGS[split]}={file.path!r}: accepted are files that end in {', '.join(KINDS)}")

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._rows[index][0]

  def locate(self, index: int) -> dict[str, Any]:
    """The file of an example and its line there (its row, in parquet and in a JSON list)."""
    _, path, number = self._rows[index]
    return {"file": path, RowFile(path).counted: number}

  def fingerprint(self) -> str:
    """Hash of all examples."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256()
    for example, *_ in self._rows:
      digest.update(json.dumps(example).encode() + b"\n")
    return digest.hexdigest()

  def describe(self) -> str:
    """Examples of each split, of which kind, what was cut and what was left out."""
    splits, skipped = self._loaded
    cut = [name for name in table.HELD_OUT if not getattr(self, name)]
    origin = f"; {' and '.join(cut)} cut from {', '.join(self.path)} by content" if cut else ""
    pairs = sum("chosen" in example for example, *_ in splits["train"])
    lines = [
      f"chat {', '.join(self.path)}: {', '.join(f'{name} {len(rows):,}' for name, rows in splits.items())} examples{origin}",
      f"  in train {pairs:,} preferences and {len(splits['train']) - pairs:,} conversations",
    ]
    if skipped:
      reasons = ", ".join(f"{count:,} of {file} ({reason})" for (file, reason), count in skipped.most_common())
      lines.append(f"  bad rows left out: {reasons}")
    return "\n".join(lines)

  @property
  def _files(self) -> dict[str, list[RowFile]]:
    """By split; those that are set."""
    found = {}
    for split, name in SETTINGS.items():
      setting = f"data.{name}"
      if patterns := getattr(self, name):
        found[split] = [RowFile(path, setting) for pattern in patterns for path in paths.expand(pattern, setting)]
    return found

  @property
  def _rows(self) -> list[Row]:
    return self._loaded[0][self.split]

  @functools.cached_property
  def _loaded(self) -> tuple[dict[str, list[Row]], Counter[tuple[str, str]]]:
    local = [file.path for files in self._files.values() for file in files if os.path.exists(file.path)]
    stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in map(os.stat, local))
    return _load(dataclasses.replace(self, split="train"), stamps)


@functools.lru_cache(maxsize=4)
def _load(chat: Chat, stamps: tuple[tuple[int, int], ...]) -> tuple[dict[str, list[Row]], Counter[tuple[str, str]]]:
  """Reads the files once for all splits. stamps: time and size of each file, so that a changed one is read again."""
  del stamps
  skipped: Counter[tuple[str, str]] = Counter()
  own = {split: _read(chat, files, skipped) for split, files in chat._files.items()}
  train = own["train"]
  cut = table.cut([((_beginning(example),), "", i) for i, (example, *_) in enumerate(train)], _held_out(own))
  splits = {split: [train[i] for _, _, i in found] for split, found in cut.items()}
  return {split: splits.get(split, own.get(split, [])) for split in SPLITS}, skipped


def _held_out(own: dict[str, list[Row]]) -> list[str]:
  """The splits that have no files of their own."""
  return [name for name in table.HELD_OUT if name not in own]


def _read(chat: Chat, files: list[RowFile], skipped: Counter[tuple[str, str]]) -> list[Row]:
  """The good rows of the files, in their order."""
  names = dict(entry.split("=", 1) for entry in chat.columns)
  wanted, found = [("data.columns", column) for column in names.values()], []
  for file in files:
    for number, cells in file.rows(wanted):
      example = cells if isinstance(cells, str) else _example(cells, names)
      if not isinstance(example, str):
        found.append((example, file.path, number))
      elif chat.on_bad_row == "error":
        raise ConfigError(f"{file.where(number)}: {example}; data.on_bad_row=skip leaves such rows out")
      else:
        skipped[file.path, example] += 1
  if not found:
    reasons = ", ".join(f"{reason} ({count:,})" for (_, reason), count in skipped.items())
    setting, where = files[0].setting, ", ".join(file.path for file in files)
    raise ConfigError(f"{setting}={where!r}: no row {f'is left; bad: {reasons}' if reasons else 'in the files'}")
  return found


def _example(cells: dict[str, Any], names: dict[str, str]) -> dict[str, Any] | str:
  """The example of a row, or what is wrong with it. names: column by our name."""
  renamed = {name: value for name, value in cells.items() if name not in names.values()}
  try:
    return dialogue.read_example(renamed | {ours: cells[column] for ours, column in names.items()})
  except ConfigError as error:
    return str(error)


def _beginning(example: dict[str, Any]) -> str:
  """What decides its split: all that is there before the last answer."""
  messages = example.get("messages")
  if messages is None:
    return json.dumps(example["prompt"])
  last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
  return json.dumps(messages[:last])
