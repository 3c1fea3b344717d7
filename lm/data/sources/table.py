"""Labelled text in a table of one's own: csv, tsv, jsonl or parquet, one row per example. Nothing is dropped silently."""

import dataclasses
import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from lm.config import ConfigError
from lm.data import paths
from lm.data.rows import BAD_ROWS, DELIMITERS, READERS, Cells, RowFile, Skipped, read_texts
from lm.data.source import SPLITS, check_split
from lm.data.splits import HELD_OUT, SETTINGS, Example, cut, describe_cut, left_out

LABEL_TYPES = ("class", "number", "list")
SEPARATOR = "|"
SHOWN = 10  # labels that `describe` counts
FEW = 30  # held-out rows: with fewer, the accuracy of 0.8 has a standard error above 0.07


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows as {"text"}, with "text_pair" where `text` names two columns, and "label" where `label` names one.

  Further columns of `text` hold what does not answer the first one, {"text_negatives": [...]}, which task `embed` reads.

  A split without a file is cut from `path` by the hash of each row's text alone. So rows of equal text stand in one split,
  rows that are added or taken away move no other, and neither their order nor the seed matters. Train, validation and test
  have 80, 10 and 10 percent of the texts, and of each label's, in expectation: of 1,000 texts 100 are held out, give or take
  10, of 20 two, give or take 1.3. Two exceptions last until rows are added: a held-out text is in train where no text there
  has its label, and a split that would be empty has one text of train where each of its labels stays there without it.

  Labels are text: 3 and 3.0 -> "3", True -> "true", without spaces around. With label_type="number" they are numbers, 3.8,
  which decide no split; with "list" a row has any number of them, "a|b" -> ["a", "b"], and none where the cell is empty. A row
  is bad if its cells, its JSON or its quotes are, if a text is empty or no text, or if it has no label or, of numbers, none
  that is one and finite.
  """

  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: str = ""  # the training file, or the one file of all splits
  validation: str = ""  # a file of its own; unset is cut from path
  test: str = ""  # a file of its own; unset is cut from path
  text: tuple[str, ...] = ("text",)  # column, or two for pairs; task embed takes more, of texts that do not answer
  label: str = ""  # column; unset reads no labels
  label_type: str = "class"  # what labels are: class (task classify), number (regress), or list of several (multilabel)
  label_separator: str = SEPARATOR  # between the labels of a row, with label_type=list; jsonl and parquet may hold lists
  encoding: str = "utf-8-sig"  # UTF-8, with or without a byte-order mark
  delimiter: str = ""  # of csv, tsv and, where it is set, txt; unset is a comma in csv and a tab in tsv, \t is a tab
  quoting: bool = True  # of csv, tsv and such txt; false takes quotes as text
  columns: tuple[str, ...] = ()  # names of the columns of csv, tsv and such txt files that have no line of names
  on_bad_row: str = "error"  # or skip, which leaves bad rows out and counts them
  examples_per_label: int = 0  # training rows that are taken of each label, all where it has fewer; 0 takes all of all
  subset_seed: int = 0  # which ones these are; they depend on it and on their own texts alone

  def __post_init__(self):
    check_split(self.split)
    if not self.path:
      raise ConfigError(f"data.path='': not set; accepted are files that end in {', '.join(READERS)}")
    for file in self._files.values():
      file.check()
    if not self.text or len({*self.text, self.label}) < len(self.text) + 1:
      raise ConfigError(f"data.text={self.text!r}: accepted are one column, or two for pairs, other than data.label")
    if len(set(self.columns)) < len(self.columns):
      raise ConfigError(f"data.columns={self.columns!r}: a name stands twice")
    if self.on_bad_row not in BAD_ROWS:
      raise ConfigError(f"data.on_bad_row={self.on_bad_row!r}: accepted are {', '.join(BAD_ROWS)}")
    if self.label_type not in LABEL_TYPES:
      raise ConfigError(f"data.label_type={self.label_type!r}: accepted are {', '.join(LABEL_TYPES)}")
    if self.label_separator != SEPARATOR and self.label_type != "list":
      raise ConfigError(f"data.label_separator={self.label_separator!r}: no effect without data.label_type=list")
    if not self.label_separator:
      raise ConfigError("data.label_separator='': must be set")
    if self.label_type != "class" and not self.label:
      raise ConfigError(f"data.label_type={self.label_type!r}: no effect; data.label names no column")
    if not any(file.is_delimited for file in self._files.values()):
      for name, default in (("delimiter", ""), ("quoting", True), ("columns", ())):
        if getattr(self, name) != default:
          kinds = f"{', '.join(DELIMITERS)} files have it, and txt with a delimiter"
          raise ConfigError(f"data.{name}={getattr(self, name)!r}: no effect; only {kinds}")
    if self.examples_per_label < 0 or self.examples_per_label and (not self.label or self.label_type != "class"):
      accepted = "0 for all rows, or a number from 1 on beside a data.label of label_type=class"
      raise ConfigError(f"data.examples_per_label={self.examples_per_label}: accepted is {accepted}")
    if self.subset_seed and not self.examples_per_label:
      raise ConfigError(f"data.subset_seed={self.subset_seed}: no effect without data.examples_per_label")

  @property
  def labels(self) -> tuple[str, ...]:
    """The training split's labels, in the order of numbers if all of them are; () without a label column, or of numbers."""
    found = {label for example in self._loaded.splits["train"] for label in self._classes(example)} - {""}
    return tuple(sorted(found, key=_label_order(found)))

  @property
  def numbers(self) -> tuple[float, ...]:
    """The training split's labels that are numbers, with label_type="number", each once."""
    found = {float(label) for _, label, _ in self._loaded.splits["train"]} if self.label_type == "number" else ()
    return tuple(sorted(found))

  @property
  def pairs(self) -> bool:
    """Whether an example has two texts."""
    return len(self.text) >= 2

  @property
  def num_hard_negatives(self) -> int:
    """Texts of an example beside a pair."""
    return max(len(self.text) - 2, 0)

  def __len__(self) -> int:
    return len(self._loaded.splits[self.split])

  def __getitem__(self, index: int) -> dict[str, Any]:
    texts, label, _ = self._loaded.splits[self.split][index]
    value = float(label) if self.label_type == "number" else list(self._parts(label)) if self.label_type == "list" else label
    negatives = {"text_negatives": list(texts[2:])} if self.num_hard_negatives else {}
    return dict(zip(("text", "text_pair"), texts, strict=False)) | negatives | ({"label": value} if self.label else {})

  def locate(self, index: int) -> dict[str, Any]:
    """The file of an example and its line there (its row, in parquet)."""
    file = self._files.get(self.split, self._files["train"])
    return {"file": file.path, file.counted: self._loaded.splits[self.split][index][2]}

  def fingerprint(self) -> str:
    """Hash of all examples."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256(repr((self.text, self.label)).encode())
    for texts, label, _ in self._loaded.splits[self.split]:
      for value in (*texts, label):
        encoded = value.encode()
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.hexdigest()

  def describe(self) -> str:
    """Rows of each split, labels with the training rows that have them, what was left out, what is too little to judge."""
    splits, skipped = self._loaded.splits, self._loaded.skipped
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())
    lines = [f"table {self.path}: {sizes} rows{describe_cut(self)}"]
    if self.label_type == "number":
      values = [float(label) for _, label, _ in splits["train"]]
      lines.append(f"  {self.label!r} in train: mean {sum(values) / len(values):.3g}, from {min(values):g} to {max(values):g}")
    elif self.label:
      counts = Counter(label for example in splits["train"] for label in self._classes(example)).most_common()
      more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
      shown = ", ".join(f"{label!r} {count:,}" for label, count in counts[:SHOWN])
      lines.append(f"  {len(counts)} labels in train: {shown}{more}")
    train = {texts for texts, *_ in splits["train"]}
    for name in HELD_OUT:
      twice = sum(texts in train for texts, *_ in splits[name])
      if twice:
        lines.append(f"  {twice:,} of {len(splits[name]):,} {name} rows have a text that stands in train too")
    lines += [f"  warning: {words}" for words in map(self._too_little, HELD_OUT) if words]
    return "\n".join([*lines, *left_out(skipped, "bad rows left out")])

  def _too_little(self, name: str) -> str:
    """What a held-out split cannot tell: it has few rows, or none of a label; "" if neither, or if it is empty."""
    rows = self._loaded.splits[name]
    classes = lambda examples: {label for example in examples for label in self._classes(example)}
    missing = sorted(classes(self._loaded.splits["train"]) - classes(rows))
    words = [f"lacks {_listed(missing)}"] if missing else []
    words += [f"has few rows ({len(rows)}), so its figures are rough"] if len(rows) < FEW else []
    return f"{name} {' and '.join(words)}; data.{name}=FILE gives it rows of its own" if rows and words else ""

  def _classes(self, example: Example) -> tuple[str, ...]:
    """What of an example's label a split must have seen in train: "" for a number, or where there are no labels."""
    if self.label_type == "list":
      return self._parts(example[1])
    return ("",) if self.label_type == "number" else (example[1],)

  def _parts(self, label: str) -> tuple[str, ...]:
    """The labels of a row that has several, each once."""
    return tuple(dict.fromkeys(part.strip() for part in label.split(self.label_separator) if part.strip()))

  @property
  def _files(self) -> dict[str, RowFile]:
    """By split; those that are set."""
    how = (self.encoding, self.delimiter, self.quoting, self.columns)
    return {s: RowFile(getattr(self, name), f"data.{name}", *how) for s, name in SETTINGS.items() if getattr(self, name)}

  @functools.cached_property
  def _loaded(self) -> "_Loaded":
    return _load(dataclasses.replace(self, split="train"), tuple(paths.stamp(file.path) for file in self._files.values()))


@dataclasses.dataclass(frozen=True)
class _Loaded:
  """All splits of a table. skipped: rows left out, by (file, reason)."""

  splits: dict[str, list[Example]]
  skipped: Skipped


@functools.lru_cache(maxsize=4)
def _load(table: Table, stamps: tuple[tuple[int, int], ...]) -> _Loaded:
  """Reads the files once for all splits. stamps: time and size of each file, so that a changed one is read again."""
  del stamps
  skipped: Skipped = Counter()
  own = {split: _read(table, file, skipped) for split, file in table._files.items()}
  splits = cut(own["train"], [name for name in HELD_OUT if name not in own], table._classes)
  splits = {name: splits[name] if name in splits else own[name] for name in SPLITS}
  splits["train"] = _few(splits["train"], table.examples_per_label, table.subset_seed)
  known = {label for example in splits["train"] for label in table._classes(example)}
  for name, examples in splits.items():
    unseen = sorted({label for example in examples for label in table._classes(example)} - known)
    if unseen:
      words = f"labels that no row of data.path={table.path!r} has: {_listed(unseen)}"
      raise ConfigError(f"data.{name}={getattr(table, name)!r}: {words}")
  return _Loaded(splits, skipped)


def _few(examples: list[Example], count: int, seed: int) -> list[Example]:
  """Of each label `count` examples, those with the smallest hash of seed and texts, in their order; all where it is 0."""
  if not count:
    return examples
  key = lambda example: (hashlib.sha256("\0".join((str(seed), *example[0])).encode()).digest(), example)
  taken: Counter[str] = Counter()
  kept = []
  for example in sorted(examples, key=key):
    taken[example[1]] += 1
    kept += [example] if taken[example[1]] <= count else []
  chosen = set(kept)
  return [example for example in examples if example in chosen]


def _read(table: Table, file: RowFile, skipped: Skipped) -> list[Example]:
  """The file's good rows, in its order."""
  wanted = [("data.text", name) for name in table.text] + ([("data.label", table.label)] if table.label else [])
  columns, num = [name for _, name in wanted], len(table.text)
  rows = file.good_rows(wanted, lambda cells: _values(table, cells, columns), table.on_bad_row, skipped)
  found: list[Example] = [(tuple(values[:num]), "".join(values[num:]).strip(), number) for values, number in rows]
  file.check_any(found, skipped)
  return found


def _values(table: Table, cells: Cells, columns: list[str]) -> list[str] | str:
  """The texts and the label of a row, or what is wrong with them."""
  if table.label_type != "list":
    values = read_texts(cells, columns)
    wrong = isinstance(values, list) and table.label_type == "number" and not _is_number(values[-1])
    return f"{table.label!r} is no number" if wrong else values
  values, given = read_texts(cells, columns[:-1]), cells[table.label]
  nothing = given is None or given != given or isinstance(given, str) and not given.strip()
  labels = given if isinstance(given, list) else [] if nothing else [given]
  named = {str(i): label for i, label in enumerate(labels)}
  found = read_texts(named, list(named))
  if isinstance(values, str) or isinstance(found, str):
    return values if isinstance(values, str) else f"{table.label!r} holds something that is no label"
  if isinstance(given, list) and any(table.label_separator in label for label in found):
    return f"{table.label!r} holds a label with {table.label_separator!r} in it, data.label_separator is another one"
  return [*values, table.label_separator.join(found)]


def _is_number(label: str) -> bool:
  try:
    return math.isfinite(float(label))
  except ValueError:
    return False


def _listed(labels: list[str]) -> str:
  more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
  return f"{', '.join(map(repr, labels[:SHOWN]))}{more}"


def _label_order(labels: Iterable[str]) -> Callable[[str], Any]:
  if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", label) for label in labels):
    return lambda label: (float(label), label)
  return str
