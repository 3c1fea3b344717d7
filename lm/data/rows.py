"""Files of rows with named columns, one row after the other: csv, tsv, jsonl, json, parquet, and txt with a text per line.

csv (RFC 4180) may hold delimiters, line breaks and doubled quotes in quoted cells; its first row names the columns, unless they
are given. The file is never in memory as a whole, and a bad row is a value, not an error: whoever reads decides.
"""

import csv
import dataclasses
import difflib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm import files
from lm.config import ConfigError
from lm.data import paths

BAD_ROWS = ("error", "skip")  # what a reader may do with them
MAX_CELL = 2**31 - 1  # characters; the csv module refuses cells of more than 131,072 unless told
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PEEK = 1000  # rows of jsonl whose columns are all that there are

Cells = dict[str, Any]
# The line a row starts on (its number, in parquet), and its cells by column, or what is wrong with it.
Row = tuple[int, Cells | str]
Wanted = Sequence[tuple[str, str]]  # (setting, column) pairs
Skipped = Counter[tuple[str, str]]  # what was left out, by (file, reason)


@dataclasses.dataclass(frozen=True)
class RowFile:
  """A file and how it is read. setting: the one that named it, for errors; prefix: of the names of the other ones.

  delimiter, quoting, columns: of csv and tsv, and of txt that has a delimiter. Without quoting a quote is a character like
  others. columns: their names, of a file whose first line is a row and does not name them.
  """

  path: str
  setting: str = "data.path"
  encoding: str = "utf-8-sig"
  delimiter: str = ""  # "": a comma in csv, a tab in tsv; a tab may be written as \t
  quoting: bool = True
  columns: tuple[str, ...] = ()
  prefix: str = "data."

  @property
  def suffix(self) -> str:
    """What the file is, e.g. ".csv", also of rows.csv.gz."""
    return paths.kind(self.path)

  @property
  def separator(self) -> str:
    """The delimiter that is used."""
    return {"": DELIMITERS.get(self.suffix, ""), "\\t": "\t"}.get(self.delimiter, self.delimiter)

  @property
  def is_delimited(self) -> bool:
    """Whether a line has several cells: csv, tsv, and a txt that has a delimiter."""
    return self.suffix in DELIMITERS or self.suffix == ".txt" and bool(self.delimiter)

  @property
  def quotes(self) -> str:
    """What is wrong where quotes are."""
    return f"quotes do not pair up, {self.prefix}quoting=false takes them as text"

  def check(self) -> None:
    """Raises ConfigError if there is no such file, or it is none that can be read, or not so."""
    if self.suffix not in READERS:
      raise ConfigError(f"{self.setting}={self.path!r}: accepted are files that end in {', '.join(READERS)}")
    if not files.is_remote(self.path) and not Path(self.path).is_file():
      raise ConfigError(f"{self.setting}={self.path!r}: no such file")
    if len(self.separator) > 1 or self.separator in ('"', "\r", "\n"):
      raise ConfigError(f"{self.prefix}delimiter={self.delimiter!r}: accepted is one character, no quote and no line break")
    try:
      "".encode(self.encoding)
    except LookupError as error:
      accepted = "accepted are text encodings such as utf-8 or gb18030"
      raise ConfigError(f"{self.prefix}encoding={self.encoding!r}: {accepted}") from error

  def rows(self, wanted: Wanted) -> Iterator[Row]:
    """All rows with all their columns; blank lines of csv, tsv and jsonl are no rows, those of txt are.

    Of several columns of a name the second is called <name>_2, and so on. wanted: columns that must be there once.

    Raises:
      ConfigError: one of them is not, bytes that are no text, a quote that swallows lines, an unreadable file.
    """
    self.check()
    try:
      yield from (_csv_rows if self.is_delimited else READERS[self.suffix])(self, wanted)
    except UnicodeError as error:
      raise _undecodable(self) from error
    except (OSError, EOFError) as error:  # EOFError: a compressed file that ends too early
      raise ConfigError(f"{self.setting}={self.path!r}: cannot be read: {getattr(error, 'strerror', '') or error}") from error

  def good_rows(
    self, wanted: Wanted, read: Callable[[Cells], Any], on_bad_row: str, skipped: Skipped
  ) -> Iterator[tuple[Any, int]]:
    """(what `read` makes of a row, its number) of the good ones; of a bad one `read` says in text what is wrong with it.

    skipped: counts the bad ones where on_bad_row is "skip"; they are a ConfigError otherwise.
    """
    for number, cells in self.rows(wanted):
      found = cells if isinstance(cells, str) else read(cells)
      if not isinstance(found, str):
        yield found, number
      elif on_bad_row == "error":
        raise ConfigError(f"{self.where(number)}: {found}; data.on_bad_row=skip leaves such rows out")
      else:
        skipped[self.path, found] += 1

  def check_any(self, found: Sequence[Any], skipped: Skipped) -> None:
    """Raises ConfigError, with what was skipped, if no row was found."""
    if not found:
      reasons = ", ".join(f"{reason} ({count:,})" for (path, reason), count in skipped.items() if path == self.path)
      raise ConfigError(f"{self.setting}={self.path!r}: no row {f'is left; bad: {reasons}' if reasons else 'in the file'}")

  def where(self, number: int) -> str:
    """A row's place in words: "reviews.csv line 3"."""
    return f"{self.path} {self.counted} {number}"

  @property
  def counted(self) -> str:
    """What the numbers of its rows are: "line" or "row"."""
    return "row" if self.suffix == ".parquet" or self.is_list else "line"

  @property
  def is_list(self) -> bool:
    """Whether it is .json that holds one list, not an object per line."""
    if self.suffix != ".json":
      return False
    with paths.opened_text(self.path, self.encoding) as stream:
      return next((line.lstrip()[0] for line in stream if line.strip()), "") == "["

  def check_columns(self, found: Sequence[str], wanted: Wanted) -> None:
    """Raises ConfigError if a wanted column does not stand among those found once."""
    for setting, column in wanted:
      if found.count(column) > 1:
        raise ConfigError(f"{setting}={column!r}: {self.path} has {found.count(column)} columns of that name")
      if column not in found:
        nearest = ", ".join(map(repr, difflib.get_close_matches(column, found, len(found) or 1, 0.0))) or "none"
        raise ConfigError(
          f"{setting}={column!r}: no such column in {self.path}; its columns, the nearest first: {nearest}{self._hint(found)}"
        )

  def _hint(self, found: Sequence[str]) -> str:
    """Another delimiter, where the only column of a csv looks like several."""
    other = next((d for d in (";", "\t", "|", ",") if self.suffix in DELIMITERS and len(found) == 1 and d in found[0]), "")
    return f"; did you mean {self.prefix}delimiter={other!r}?" if other else ""


def _csv_rows(file: RowFile, wanted: Wanted) -> Iterator[Row]:
  csv.field_size_limit(MAX_CELL)
  quoting = csv.QUOTE_MINIMAL if file.quoting else csv.QUOTE_NONE
  with paths.opened_text(file.path, file.encoding, newline="") as stream:
    # strict: otherwise a quote that is never closed would take the rest of the file into one cell without a word
    reader = csv.reader(stream, delimiter=file.separator, quoting=quoting, strict=True)
    records = _records(file, reader)
    header: Sequence[str] | str = file.columns
    if not file.columns:
      _, header = next(records, (1, []))
    if isinstance(header, str):
      raise ConfigError(f"{file.where(1)}: {header}")
    names = [name.strip() for name in header]
    file.check_columns(names, wanted)
    names = [name if (n := names[:i].count(name)) == 0 else f"{name}_{n + 1}" for i, name in enumerate(names)]
    for line, cells in records:
      if isinstance(cells, list) and len(cells) != len(names):
        yield line, f"{len(cells)} cells where {f'{file.prefix}columns' if file.columns else 'the first row'} has {len(names)}"
      else:
        yield line, cells if isinstance(cells, str) else dict(zip(names, cells, strict=True))


def _records(file: RowFile, reader: Any) -> Iterator[tuple[int, list[str] | str]]:
  """All cells of each record that is not blank."""
  while True:
    first = reader.line_num + 1
    try:
      cells = next(reader, None)
    except csv.Error as error:
      if reader.line_num > first:  # nobody knows how many rows are inside, so there is nothing to skip
        raise ConfigError(f"{file.path} lines {first} to {reader.line_num}: {file.quotes} ({error})") from error
      yield first, f"{file.quotes} ({error})"
      continue
    if cells is None:
      return
    if cells:
      yield first, cells


def _jsonl_rows(file: RowFile, wanted: Wanted) -> Iterator[Row]:
  with paths.opened_text(file.path, file.encoding) as stream:
    lines = ((number, parse_json(line)) for number, line in enumerate(stream, 1) if line.strip())
    rows = iter(_listed(file, stream.read())) if file.is_list else lines
    first = list(itertools.islice(rows, PEEK))
    columns = dict.fromkeys(name for _, cells in first if isinstance(cells, dict) for name in cells)
    if columns:
      file.check_columns(list(columns), wanted)
    # A row that leaves out a column has nothing in it.
    empty = dict.fromkeys(column for _, column in wanted)
    for number, cells in itertools.chain(first, rows):
      yield number, empty | cells if isinstance(cells, dict) else cells


def _listed(file: RowFile, text: str) -> list[Row]:
  """The rows of a .json file that is one list of objects."""
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as error:
    reason = f"{getattr(error, 'msg', 'nested too deeply')}, line {getattr(error, 'lineno', 1)}"
    raise ConfigError(f"{file.setting}={file.path!r}: a list that is bad JSON ({reason})") from error
  return [(number, _object(value, "\\u" in text)) for number, value in enumerate(values, 1)]


def parse_json(line: str) -> Cells | str:
  """The object on a line of jsonl, or what is wrong with it."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError) as error:
    return f"bad JSON ({getattr(error, 'msg', 'nested too deeply')})"
  return _object(value, "\\u" in line)


def _object(value: Any, escapes: bool) -> Cells | str:
  """A value of JSON if it is an object of whole characters. escapes: whether some may have been written as \\ud800."""
  if not isinstance(value, dict):
    return "not a JSON object"
  if escapes and not _encodes(json.dumps(value, ensure_ascii=False)):
    return "holds half a surrogate pair"
  return value


def _encodes(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:  # "\ud800" in JSON
    return False
  return True


def _parquet_rows(file: RowFile, wanted: Wanted) -> Iterator[Row]:
  import pyarrow
  from pyarrow import parquet

  try:
    with paths.opened(file.path) as stream, parquet.ParquetFile(stream) as table:
      file.check_columns(table.schema_arrow.names, wanted)
      yield from enumerate((row for batch in table.iter_batches() for row in batch.to_pylist()), 1)
  except pyarrow.ArrowException as error:
    raise ConfigError(f"{file.setting}={file.path!r}: not a whole parquet file") from error


def _txt_rows(file: RowFile, wanted: Wanted) -> Iterator[Row]:
  file.check_columns(["text"], wanted)
  with paths.opened_text(file.path, file.encoding) as stream:
    yield from ((number, {"text": line.removesuffix("\n")}) for number, line in enumerate(stream, 1))


def read_texts(cells: Cells, columns: Sequence[str]) -> list[str] | str:
  """The text in each of these columns' cells, or what is wrong with one: it is empty, or a list or other structure.

  3 and 3.0 -> "3", True -> "true", nothing or not-a-number is empty.
  """
  values: list[str] = []
  for column in columns:
    value = _as_text(cells[column])
    if value is None:
      return f"{column!r} holds a {type(cells[column]).__name__}"
    if not value or value.isspace():
      return f"{column!r} is empty"
    values.append(value)
  return values


def _as_text(cell: Any) -> str | None:
  """None for a list or other structure."""
  if isinstance(cell, str):
    return cell
  if cell is None or cell != cell:
    return ""
  if isinstance(cell, bool):
    return "true" if cell else "false"
  if isinstance(cell, float) and cell.is_integer():
    return str(int(cell))
  return str(cell) if isinstance(cell, int | float) else None


READERS = {
  **dict.fromkeys((".csv", ".tsv"), _csv_rows),
  **dict.fromkeys((".jsonl", ".json"), _jsonl_rows),  # as the data sets of CLUE name it
  ".parquet": _parquet_rows,
  ".txt": _txt_rows,
}


def _undecodable(file: RowFile) -> ConfigError:
  """Says where: the reader knows the byte only from the start of its buffer."""
  with paths.opened(file.path) as stream:
    data, offset = stream.read(), 0
  try:
    data.decode(file.encoding)
  except UnicodeDecodeError as error:
    offset = len(data) - len(error.object) + error.start  # utf-8-sig takes the BOM off before it counts
  except UnicodeError:  # no byte to name: UTF-16 without its mark
    pass
  return ConfigError(
    f"{file.setting}={file.path!r}: byte {offset} is not {file.encoding} text; "
    f"accepted is another {file.prefix}encoding, such as cp1252, gb18030 or utf-16"
  )
