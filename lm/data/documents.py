"""The documents in files, at random and without holding the files: places of lines and paragraphs, row groups of Parquet.

Opening reads every file once, so that each document that is given is whole and each one that is not is counted.
"""

import bisect
import contextlib
import dataclasses
import itertools
from array import array
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from lm.config import ConfigError
from lm.data import paths
from lm.data.rows import BAD_ROWS, DELIMITERS, RowFile, parse_json, read_texts

BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Reading:
  """How files are read. setting: the one that named them, for errors. unit: what a document is in plain text.

  column: the text's in jsonl (also .json), csv, tsv and parquet. on_bad_row: error, or skip.
  """

  setting: str = "data.path"
  unit: str = "line"
  column: str = "text"
  encoding: str = "utf-8"
  on_bad_row: str = "error"

  def check(self) -> None:
    """Raises ConfigError for a value that is not accepted."""
    if self.unit not in UNITS:
      raise ConfigError(f"data.unit={self.unit!r}: accepted are {', '.join(UNITS)}")
    if self.on_bad_row not in BAD_ROWS:
      raise ConfigError(f"data.on_bad_row={self.on_bad_row!r}: accepted are {', '.join(BAD_ROWS)}")
    try:
      ends = "a\n".encode(self.encoding)[-2:] == b"a\n"
    except LookupError:
      ends = False
    if not ends:
      raise ConfigError(
        f"data.encoding={self.encoding!r}: accepted are text encodings with ASCII in it, as utf-8, gb18030, cp1252"
      )

  def bad(self, path: str, number: int | str, reason: str, counted: str = "line") -> tuple[str, str]:
    """The key under which a bad row is counted, or its error."""
    if self.on_bad_row == "error":
      raise ConfigError(f"{self.setting}: {path} {counted} {number}: {reason}; data.on_bad_row=skip leaves such rows out")
    return path, reason


class Documents:
  """The documents of some files, one file after the other. Blank lines and blank paragraphs are none.

  limit: how many at most, 0 for all; no file is asked for beyond the one that reaches it.
  """

  def __init__(self, files: Iterable[str], reading: Reading, limit: int = 0):
    self.skipped: Counter[tuple[str, str]] = Counter()  # bad rows, by (file, reason)
    self._parts: list[Any] = []
    self._part = 0  # the one that was read last; no other holds a file open or rows in memory
    for path in files:
      try:
        self._parts.append(_open(path, reading, self.skipped))
      except (OSError, EOFError) as error:  # EOFError: a compressed file that ends too early
        raise unreadable(path, reading, error) from error
      if limit and sum(map(len, self._parts)) >= limit:
        break
    self._before = [0, *itertools.accumulate(map(len, self._parts))]
    self._size = min(self._before[-1], limit) if limit else self._before[-1]
    if self.skipped:
      reasons = ", ".join(f"{count:,} of {path} ({reason})" for (path, reason), count in self.skipped.most_common())
      print(f"{reading.setting}: bad rows left out: {reasons}")

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> str:
    if not 0 <= index < len(self):
      raise IndexError(index)
    part = bisect.bisect_right(self._before, index) - 1
    if part != self._part:
      self._parts[self._part].close()
      self._part = part
    return self._parts[part][index - self._before[part]]


def unreadable(path: str, reading: Reading, error: OSError | EOFError) -> ConfigError:
  """What to raise for a file whose bytes cannot be read."""
  return ConfigError(f"{reading.setting}: {path!r} cannot be read: {getattr(error, 'strerror', '') or error}")


def _open(path: str, reading: Reading, skipped: Counter) -> Any:
  suffix = paths.kind(path)
  if suffix == ".parquet":
    return _RowGroups(path, reading, skipped)
  if suffix in DELIMITERS:  # a quoted cell may hold line breaks, so that its place is known only from the start
    return _cells(path, reading, skipped)
  return _Spans(path, reading, skipped, is_json=suffix in (".jsonl", ".json"))


class _Cells(list):
  """Texts that are held."""

  def close(self) -> None:
    """Nothing is open."""


def _cells(path: str, reading: Reading, skipped: Counter) -> _Cells:
  file = RowFile(path, reading.setting, "utf-8-sig" if reading.encoding == "utf-8" else reading.encoding)
  texts = _Cells()
  for number, cells in file.rows([("data.text", reading.column)]):
    found = cells if isinstance(cells, str) else read_texts(cells, [reading.column])
    if isinstance(found, str):
      skipped[reading.bad(path, number, found)] += 1
    else:
      texts.extend(found)
  return texts


class _Spans:
  """Documents that are bytes start to stop of a file: lines, paragraphs, whole files, lines of jsonl."""

  def __init__(self, path: str, reading: Reading, skipped: Counter, is_json: bool):
    self._reading, self._is_json, self._reader = reading, is_json, paths.Reader(path)
    self._starts, self._stops = array("q"), array("q")
    unit = "line" if is_json else reading.unit
    for number, start, stop, data in PIECES[unit](path):
      text = self._parse(data)
      if text is None:
        skipped[reading.bad(path, number, self._reason(data))] += 1
      elif text and not text.isspace():
        self._starts.append(start)
        self._stops.append(stop)

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> str:
    text = self._parse(self._reader.read(self._starts[index], self._stops[index]))
    assert text is not None, "it was read before"
    return text

  def close(self) -> None:
    """Closes the file until it is read again."""
    self._reader.close()

  def _parse(self, data: bytes) -> str | None:
    """The text, "" for a blank line of jsonl, None if there is something wrong."""
    found = self._read(data)
    return found if isinstance(found, str) else None

  def _reason(self, data: bytes) -> str:
    (reason,) = self._read(data)
    return reason

  def _read(self, data: bytes) -> str | tuple[str]:
    """The text, or (what is wrong,)."""
    try:
      text = data.decode(self._reading.encoding)
    except UnicodeDecodeError as error:
      return (f"byte {error.start} is not {self._reading.encoding} text",)
    if not self._is_json or not text.strip():
      return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    cells = parse_json(text)
    if isinstance(cells, str):
      return (cells,)
    found = read_texts({self._reading.column: None} | cells, [self._reading.column])
    return (found,) if isinstance(found, str) else found[0]


class _RowGroups:
  """The rows of a Parquet file that have a text. One row group is in memory at a time."""

  def __init__(self, path: str, reading: Reading, skipped: Counter):
    self._path, self._column, self._setting = path, reading.column, reading.setting
    file = RowFile(path, reading.setting)
    self._rows: list[array] = []  # by row group, the numbers of the rows that are documents
    with _parquet(file) as table:
      file.check_columns(table.schema_arrow.names, [("data.text", self._column)])
      first = 1
      for group in range(table.num_row_groups):
        cells, rows = self._read(table, group), array("q")
        for number, cell in enumerate(cells):
          found = read_texts({self._column: cell}, [self._column])
          if isinstance(found, str):
            skipped[reading.bad(path, first + number, found, "row")] += 1
          else:
            rows.append(number)
        self._rows.append(rows)
        first += len(cells)
    self._before = [0, *itertools.accumulate(map(len, self._rows))]
    self._group: tuple[int, list[Any]] = (-1, [])

  def __len__(self) -> int:
    return self._before[-1]

  def __getitem__(self, index: int) -> str:
    group = bisect.bisect_right(self._before, index) - 1
    if self._group[0] != group:
      with _parquet(RowFile(self._path, self._setting)) as table:
        self._group = (group, self._read(table, group))
    (text,) = read_texts({self._column: self._group[1][self._rows[group][index - self._before[group]]]}, [self._column])
    return text

  def close(self) -> None:
    """Lets go of the rows in memory."""
    self._group = (-1, [])

  def _read(self, table: Any, group: int) -> list[Any]:
    return table.read_row_group(group, columns=[self._column]).column(0).to_pylist()


@contextlib.contextmanager
def _parquet(file: RowFile) -> Generator[Any, None, None]:
  import pyarrow
  from pyarrow import parquet

  try:
    with paths.opened(file.path) as stream, parquet.ParquetFile(stream) as table:
      yield table
  except pyarrow.ArrowException as error:
    raise ConfigError(f"{file.setting}={file.path!r}: not a whole parquet file") from error


Piece = tuple[int, int, int, bytes]  # line number, start, stop, the bytes between


def lines(path: str) -> Iterator[Piece]:
  """Lines without their ends, of any system. Not splitlines: a form feed or U+2028 is part of its line."""
  start = 0
  with paths.opened(path) as file:
    for number, line in enumerate(file, 1):
      skip = len(BOM) if number == 1 and line.startswith(BOM) else 0
      at = start + skip
      for piece in line[skip:].removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
        yield number, at, at + len(piece), piece
        at += len(piece) + 1
      start += len(line)


def _paragraphs(path: str) -> Iterator[Piece]:
  """Lines up to a blank one, as one piece with its line breaks."""
  held: list[Piece] = []
  for line in itertools.chain(lines(path), [(0, 0, 0, b"")]):
    if line[3].strip():
      held.append(line)
    elif held:
      yield held[0][0], held[0][1], held[-1][2], b"\n".join(data for *_, data in held)
      held = []


def _whole(path: str) -> Iterator[Piece]:
  with paths.opened(path) as file:
    data = file.read()
  start = len(BOM) if data.startswith(BOM) else 0
  yield 1, start, len(data), data[start:]


PIECES = {"line": lines, "paragraph": _paragraphs, "file": _whole}
UNITS = tuple(PIECES)
