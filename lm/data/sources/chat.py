"""Conversations and preferences in files: jsonl, JSON lists, parquet, csv. Every layout of `lm.data.dialogue` is read."""

import dataclasses
import functools
import json
from collections import Counter
from typing import Any, ClassVar

from lm.config import ConfigError
from lm.data import dialogue, paths
from lm.data.rows import BAD_ROWS, RowFile, Skipped
from lm.data.source import check_split, list_files
from lm.data.splits import SETTINGS, describe_cut, hash_examples, left_out, part

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
    return hash_examples(example for example, *_ in self._rows)

  def describe(self) -> str:
    """Examples of each split, of which kind, what was cut and what was left out."""
    splits, skipped = self._loaded
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())
    pairs = sum("chosen" in example for example, *_ in splits["train"])
    lines = [
      f"chat {', '.join(self.path)}: {sizes} examples{describe_cut(self)}",
      f"  in train {pairs:,} preferences and {len(splits['train']) - pairs:,} conversations",
    ]
    return "\n".join([*lines, *left_out(skipped, "bad rows left out")])

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
  def _loaded(self) -> tuple[dict[str, list[Row]], Skipped]:
    stamps = tuple(paths.stamp(file.path) for files in self._files.values() for file in files)
    return _load(dataclasses.replace(self, split="train"), stamps)


@functools.lru_cache(maxsize=4)
def _load(chat: Chat, stamps: tuple[tuple[int, int], ...]) -> tuple[dict[str, list[Row]], Skipped]:
  """Reads the files once for all splits. stamps: time and size of each file, so that a changed one is read again."""
  del stamps
  skipped: Skipped = Counter()
  own = {split: _read(chat, files, skipped) for split, files in chat._files.items()}
  return part(own, lambda row: (_beginning(row[0]),)), skipped


def _read(chat: Chat, files: list[RowFile], skipped: Skipped) -> list[Row]:
  """The good rows of the files, in their order."""
  names = dict(entry.split("=", 1) for entry in chat.columns)
  wanted, read = [("data.columns", column) for column in names.values()], lambda cells: _example(cells, names)
  found = [
    (example, file.path, number) for file in files for example, number in file.good_rows(wanted, read, chat.on_bad_row, skipped)
  ]
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
