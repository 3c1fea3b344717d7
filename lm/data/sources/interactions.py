"""What users took, in order of time, and the texts of the items: a table of each, as MovieLens has them."""

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from lm.config import ConfigError
from lm.data import paths
from lm.data.rows import BAD_ROWS, READERS, Cells, RowFile, Skipped, read_texts
from lm.data.source import check_split, list_files
from lm.data.splits import left_out

SHORTEST = 3  # items of a user: one to begin with, and one for each held-out split


@dataclasses.dataclass(frozen=True)
class Interactions:
  """Examples {"item"} of all items of the catalogue, then {"query", "positive"}: a user's latest items, and the one after them.

  "query" has the texts of the last `history` items before, the latest first, with "; " between them; so a row that is cut loses
  the oldest. Leave-last-out: of a user's items in the order of time (of equal times, of the file) the last is the test split's,
  the one before it validation's, and each of the others but the first is one of train, with those before it as the history.

  An item's text is that of its columns and of the tags most often given to it, with ", " between them; "a|b" is read as
  "a, b". Items of equal text are one item. A row is bad if a cell is empty, if its time or value is no number, or if its item
  is not in `items_path` or stands there twice; a user is bad who has fewer than 3 items.
  """

  PATHS: ClassVar = ("path", "items_path", "tags_path")

  split: str = "train"
  path: str = ""  # csv, tsv, jsonl or parquet: a row for each item that a user took
  items_path: str = ""  # the same kinds: a row for each item
  user: str = "user"  # column of path
  item: str = "item"  # column of path, of items_path and of tags_path, by which rows of the one belong to the other
  time: str = "time"  # column of path, a number
  text: tuple[str, ...] = ("text",)  # columns of items_path that make an item's text
  value: str = ""  # column of path, a number such as a rating; unset, every row counts
  least: float = 0.0  # rows of a lower value are left out
  history: int = 20  # [items] that a query has at most
  tags_path: str = ""  # the same kinds: a row for each tag that was given to an item; unset, there are none
  tag: str = "tag"  # column of tags_path
  num_tags: int = 3  # tags of an item at most
  on_bad_row: str = "error"  # or skip, which leaves bad rows, and users with too few, out and counts them

  def __post_init__(self):
    list_files(self, ("text",))
    check_split(self.split)
    for name in ("path", "items_path"):
      if not getattr(self, name):
        raise ConfigError(f"data.{name}='': not set; accepted are files that end in {', '.join(READERS)}")
    for name in ("history", "num_tags"):
      if getattr(self, name) < 1:
        raise ConfigError(f"data.{name}={getattr(self, name)}: must be 1 or more")
    if not self.text:
      raise ConfigError("data.text=(): accepted are columns of data.items_path")
    if self.least and not self.value:
      raise ConfigError(f"data.least={self.least}: no effect; data.value names no column")
    if not self.tags_path and (self.tag != "tag" or self.num_tags != 3):
      raise ConfigError(f"data.tag={self.tag!r}, data.num_tags={self.num_tags}: no effect without data.tags_path")
    if self.on_bad_row not in BAD_ROWS:
      raise ConfigError(f"data.on_bad_row={self.on_bad_row!r}: accepted are {', '.join(BAD_ROWS)}")
    for file in self._files.values():
      file.check()

  @property
  def items(self) -> tuple[str, ...]:
    """The texts of the catalogue; the number of an item is its place."""
    return self._loaded.items

  @property
  def popularity(self) -> np.ndarray:
    """How many users took each item in what the training split knows, [I]."""
    taken = [user.items[:-2] for user in self._loaded.users]
    return np.bincount(np.concatenate(taken), minlength=len(self.items))

  def known(self, index: int) -> np.ndarray:
    """Numbers of the items that the user of an example took before; none of an item of the catalogue."""
    user, place = self._examples[index - len(self.items)] if index >= len(self.items) else (0, 0)
    return self._loaded.users[user].items[:place]

  def taken(self, index: int) -> tuple[int, int]:
    """The user of an example by number, and the number of the item that came next, for models without texts."""
    user, place = self._examples[index - len(self.items)]
    return user, int(self._loaded.users[user].items[place])

  def __len__(self) -> int:
    return len(self.items) + len(self._examples)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if index < len(self.items):
      return {"item": self.items[index]}
    user, place = self._examples[index - len(self.items)]
    taken = self._loaded.users[user].items
    latest = taken[max(place - self.history, 0) : place][::-1]
    return {"query": "; ".join(self.items[i] for i in latest), "positive": self.items[taken[place]]}

  def locate(self, index: int) -> dict[str, Any]:
    """The file and the line of what a user took; the number of an item of the catalogue."""
    if index < len(self.items):
      return {"file": self.items_path, "item": index}
    user, place = self._examples[index - len(self.items)]
    return {"file": self.path, self._files["path"].counted: int(self._loaded.users[user].lines[place])}

  def fingerprint(self) -> str:
    """Hash of the catalogue and of all that users took."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256(repr((self.split, self.history, self.items)).encode())
    for user in self._loaded.users:
      digest.update(len(user.items).to_bytes(8) + user.items.astype("<i8").tobytes())
    return digest.hexdigest()

  def describe(self) -> str:
    """Users, items and examples, how many items a user has, what was left out."""
    loaded = self._loaded
    sizes = [len(user.items) for user in loaded.users]
    lines = [
      f"interactions {self.path}: {len(sizes):,} users, {len(self.items):,} items, {sum(sizes):,} taken",
      f"  of a user: median {np.median(sizes):.0f}, most {max(sizes):,}; train {sum(sizes) - 3 * len(sizes):,} examples,"
      f" validation and test {len(sizes):,} each",
    ]
    return "\n".join([*lines, *left_out(loaded.skipped, "left out")])

  @functools.cached_property
  def _examples(self) -> list[tuple[int, int]]:
    """(user, place of the item that came next among theirs) of the split."""
    places = {"train": lambda n: range(1, n - 2), "validation": lambda n: [n - 2], "test": lambda n: [n - 1]}[self.split]
    return [(number, place) for number, user in enumerate(self._loaded.users) for place in places(len(user.items))]

  @property
  def _files(self) -> dict[str, RowFile]:
    """By setting; those that are set."""
    return {name: RowFile(getattr(self, name), f"data.{name}") for name in self.PATHS if getattr(self, name)}

  @functools.cached_property
  def _loaded(self) -> "_Loaded":
    return _load(dataclasses.replace(self, split="train"), tuple(paths.stamp(file.path) for file in self._files.values()))


@dataclasses.dataclass(frozen=True)
class _User:
  """What a user took, in order of time: numbers of the items, and lines of the file."""

  items: np.ndarray
  lines: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Loaded:
  """Texts of the catalogue, users in the order in which the file has them, and what was left out."""

  items: tuple[str, ...]
  users: list[_User]
  skipped: Skipped


@functools.lru_cache(maxsize=4)
def _load(source: Interactions, stamps: tuple[tuple[int, int], ...]) -> _Loaded:
  """Reads the files once for all splits. stamps: time and size of each file, so that a changed one is read again."""
  del stamps
  skipped: Skipped = Counter()
  texts = _read_items(source, skipped)
  numbers = {text: number for number, text in enumerate(dict.fromkeys(texts.values()))}
  by_user: dict[str, list[tuple[float, int, int]]] = {}
  for line, user, item, time in _read_taken(source, texts, skipped):
    taken = by_user.setdefault(user, [])
    if item is not None:
      taken.append((time, line, numbers[texts[item]]))
  users = []
  for user, taken in by_user.items():
    if len(taken) < SHORTEST:
      _refuse(
        source,
        source.path,
        f"user {user!r} has {len(taken)} items, {SHORTEST} or more are needed",
        "users of few items",
        skipped,
      )
      continue
    taken.sort(key=lambda row: row[:2])
    users.append(_User(np.asarray([item for *_, item in taken]), np.asarray([line for _, line, _ in taken])))
  if not users:
    raise ConfigError(f"data.path={source.path!r}: no user with {SHORTEST} items or more is left")
  return _Loaded(tuple(numbers), users, skipped)


def _read_items(source: Interactions, skipped: Skipped) -> dict[str, str]:
  """Text by the item's cell, with the tags most often given to it, of equally many the first ones."""
  tags: dict[str, Counter[str]] = {}
  if source.tags_path:
    for _, (item, tag) in _read(source, "tags_path", [("data.item", source.item), ("data.tag", source.tag)], skipped):
      tags.setdefault(item, Counter())[tag.strip()] += 1
  wanted = [("data.item", source.item), *(("data.text", column) for column in source.text)]
  found: dict[str, str] = {}
  for line, (item, *texts) in _read(source, "items_path", wanted, skipped):
    if item in found:
      where = f"{source._files['items_path'].where(line)}: item {item!r} stands there twice"
      _refuse(source, source.items_path, where, "an item twice", skipped)
      continue
    often = [tag for tag, _ in tags.get(item, Counter()).most_common(source.num_tags)]
    found[item] = ", ".join(text.strip().replace("|", ", ") for text in [*texts, *often])
  if not found:
    raise ConfigError(f"data.items_path={source.items_path!r}: no row is left")
  return found


def _read_taken(source: Interactions, texts: dict[str, str], skipped: Skipped) -> Iterator[tuple[int, str, str | None, float]]:
  """(line, user, item, time) of the good rows; no item where the value is too low to count."""
  wanted = [("data.user", source.user), ("data.item", source.item), ("data.time", source.time)]
  wanted += [("data.value", source.value)] if source.value else []
  file = source._files["path"]
  for line, (user, item, *numbers) in _read(source, "path", wanted, skipped):
    time, *value = map(_number, numbers)
    if item not in texts:
      _refuse(source, file.path, f"{file.where(line)}: item {item!r} is not in {source.items_path}", "unknown item", skipped)
    elif not all(map(math.isfinite, (time, *value))):
      bad = next(
        column for column, number in zip((source.time, source.value), (time, *value), strict=False) if not math.isfinite(number)
      )
      _refuse(source, file.path, f"{file.where(line)}: {bad!r} is no number", f"{bad!r} is no number", skipped)
    else:
      yield line, user, item if not value or value[0] >= source.least else None, time


def _read(
  source: Interactions, setting: str, wanted: list[tuple[str, str]], skipped: Skipped
) -> Iterator[tuple[int, list[str]]]:
  """(line, the wanted cells as text) of the good rows of a file."""
  file = source._files[setting]
  for line, cells in file.rows(wanted):
    values: Cells | list[str] | str = cells if isinstance(cells, str) else read_texts(cells, [column for _, column in wanted])
    if isinstance(values, list):
      yield line, values
    else:
      _refuse(source, file.path, f"{file.where(line)}: {values}", str(values), skipped)


def _refuse(source: Interactions, path: str, words: str, reason: str, skipped: Skipped) -> None:
  """Raises ConfigError with the words, or counts the reason where bad rows are left out."""
  if source.on_bad_row == "error":
    raise ConfigError(f"{words}; data.on_bad_row=skip leaves such out")
  skipped[path, reason] += 1


def _number(cell: str) -> float:
  try:
    return float(cell)
  except ValueError:
    return math.nan
