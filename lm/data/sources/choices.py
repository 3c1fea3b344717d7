"""Multiple choice in csv, tsv, jsonl or parquet: a context, a question, several choices, and which of them is right."""

import dataclasses
import functools
from collections import Counter
from typing import Any, ClassVar

from lm.config import ConfigError
from lm.data import paths
from lm.data.rows import BAD_ROWS, READERS, Cells, RowFile, Skipped, read_texts
from lm.data.source import check_split, list_files
from lm.data.splits import SETTINGS, describe_cut, hash_examples, left_out, part

LETTER = "A"
FIRST = ("0", "1", LETTER)

Row = tuple[dict[str, Any], int]  # example, line (or row) of its file


@dataclasses.dataclass(frozen=True)
class Choices:
  """Examples {"context", "question", "choices": [...], "label"}, the first two where their columns are set.

  SWAG: context=sent1, question=sent2, choices=ending0,ending1,ending2,ending3. RACE: context=article, choices=options (a list),
  label=answer, first=A. COPA: context=premise, choices=choice1,choice2.

  Every row has as many choices as the first row of the training file. A split without a file is cut from `path` by the hash of
  context and question, as `table` cuts: 80, 10 and 10 percent, and none stands in two splits. A row is bad if its cells or
  its JSON are, if it has no such number of choices, an empty one, an empty context or question, or a label that names none.
  """

  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: str = ""  # the training file, or the one file of all splits
  validation: str = ""  # a file of its own; unset is cut from path
  test: str = ""  # a file of its own; unset is cut from path
  context: str = ""  # column of what is read first; unset, there is none
  question: str = ""  # column of what stands in front of every choice; unset, there is none
  columns: tuple[str, ...] = ("choices",)  # of the choices: one that holds a list (jsonl, parquet), or one for each of them
  label: str = "label"  # column
  first: str = "0"  # what labels call the first choice: 0, 1 or A; they count on from there
  encoding: str = "utf-8-sig"  # UTF-8, with or without a byte-order mark
  delimiter: str = ""  # of csv and tsv; unset is a comma in csv and a tab in tsv, \t is a tab
  on_bad_row: str = "error"  # or skip, which leaves bad rows out and counts them

  def __post_init__(self):
    list_files(self, ("columns",))
    check_split(self.split)
    if not self.path:
      raise ConfigError(f"data.path='': not set; accepted are files that end in {', '.join(READERS)}")
    for file in self._files.values():
      file.check()
    if not self.context and not self.question:
      raise ConfigError(
        "data.context='': not set, and data.question is not either; accepted is a column for one of them or both"
      )
    if self.first not in FIRST:
      raise ConfigError(f"data.first={self.first!r}: accepted are {', '.join(FIRST)}")
    if self.on_bad_row not in BAD_ROWS:
      raise ConfigError(f"data.on_bad_row={self.on_bad_row!r}: accepted are {', '.join(BAD_ROWS)}")
    named = [column for _, column in self._wanted]
    if not self.columns or len(set(named)) < len(named):
      raise ConfigError(f"data.columns={self.columns!r}: accepted are columns other than those of context, question and label")

  @property
  def choices(self) -> tuple[str, ...]:
    """What labels call the choices, in their order."""
    return _names(self.first, self._loaded[2])

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._rows[index][0]

  def locate(self, index: int) -> dict[str, Any]:
    """The file of an example and its line there (its row, in parquet)."""
    file = self._files.get(self.split, self._files["train"])
    return {"file": file.path, file.counted: self._rows[index][1]}

  def fingerprint(self) -> str:
    """Hash of all examples."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    return hash_examples(example for example, _ in self._rows)

  def describe(self) -> str:
    """Rows of each split, how often each choice is right in train, what was cut and what was left out."""
    splits, skipped, _ = self._loaded
    sizes = ", ".join(f"{name} {len(rows):,}" for name, rows in splits.items())
    counts = Counter(example["label"] for example, _ in splits["train"])
    lines = [
      f"choices {self.path}: {sizes} rows{describe_cut(self)}",
      f"  right in train: {', '.join(f'{name} {counts[name]:,}' for name in self.choices)}",
    ]
    return "\n".join([*lines, *left_out(skipped, "bad rows left out")])

  @property
  def _wanted(self) -> list[tuple[str, str]]:
    """(setting, column) of all columns that are read."""
    single = [(f"data.{name}", getattr(self, name)) for name in ("context", "question", "label") if getattr(self, name)]
    return single + [("data.columns", column) for column in self.columns]

  @property
  def _files(self) -> dict[str, RowFile]:
    """By split; those that are set."""
    how = (self.encoding, self.delimiter)
    return {s: RowFile(getattr(self, name), f"data.{name}", *how) for s, name in SETTINGS.items() if getattr(self, name)}

  @property
  def _rows(self) -> list[Row]:
    return self._loaded[0][self.split]

  @functools.cached_property
  def _loaded(self) -> tuple[dict[str, list[Row]], Skipped, int]:
    return _load(dataclasses.replace(self, split="train"), tuple(paths.stamp(file.path) for file in self._files.values()))


@functools.lru_cache(maxsize=4)
def _load(source: Choices, stamps: tuple[tuple[int, int], ...]) -> tuple[dict[str, list[Row]], Skipped, int]:
  """Rows by split, what was left out, and the number of choices; the files are read again where time or size changed."""
  del stamps
  skipped: Skipped = Counter()
  own: dict[str, list[Row]] = {}
  count = 0
  for split, file in source._files.items():
    own[split], count = _read(source, file, count, skipped)
  return part(own, lambda row: (row[0].get("context", ""), row[0].get("question", ""))), skipped, count


def _read(source: Choices, file: RowFile, count: int, skipped: Skipped) -> tuple[list[Row], int]:
  """The good rows of a file, and how many choices each has: `count`, or as many as the first if that is 0."""

  def read(cells: Cells) -> dict[str, Any] | str:
    nonlocal count
    example = _example(source, cells, count)
    count = count if isinstance(example, str) else len(example["choices"])
    return example

  found: list[Row] = list(file.good_rows(source._wanted, read, source.on_bad_row, skipped))
  file.check_any(found, skipped)
  return found, count


def _example(source: Choices, cells: Cells, count: int) -> dict[str, Any] | str:
  """The example of a row, or what is wrong with it."""
  texts = {name: column for name in ("context", "question") if (column := getattr(source, name))}
  said, given = read_texts(cells, [*texts.values(), source.label]), {column: cells[column] for column in source.columns}
  if len(source.columns) == 1:
    listed = cells[source.columns[0]]
    if not isinstance(listed, list):
      return f"{source.columns[0]!r} holds no list; data.columns=a,b,c names a column for each choice"
    given = {f"{source.columns[0]}[{i}]": choice for i, choice in enumerate(listed)}
  choices = read_texts(given, list(given))
  if isinstance(said, str) or isinstance(choices, str):
    return said if isinstance(said, str) else str(choices)
  if len(choices) < 2 or count and len(choices) != count:
    return f"{len(choices)} choices, where {f'the first row has {count}' if count else '2 or more are needed'}"
  label, names = said.pop().strip(), _names(source.first, len(choices))
  if label not in names:
    return f"label {label!r} is none of {', '.join(names)}, as data.first={source.first!r} counts them"
  return dict(zip(texts, said, strict=True)) | {"choices": choices, "label": label}


def _names(first: str, count: int) -> tuple[str, ...]:
  """What labels call `count` choices: "A", 3 -> A, B, C; "1", 3 -> 1, 2, 3."""
  if first == LETTER:
    return tuple(chr(ord(LETTER) + i) for i in range(count))
  return tuple(str(int(first) + i) for i in range(count))
