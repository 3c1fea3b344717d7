"""Files of rows with named columns: csv, tsv, jsonl and parquet, told apart by suffix. A bad row is a value, not an error.

csv (RFC 4180) may hold delimiters, line breaks and doubled quotes in quoted cells; its first row names the columns.
"""

import csv
import dataclasses
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lm.config import ConfigError

MAX_CELL = 2**31 - 1  # characters; the csv module refuses cells of more than 131,072 unless told
DELIMITERS = {".csv": ",", ".tsv": "\t"}
QUOTES = "quotes do not pair up, data.quoting=false takes them as text"

# The line a row starts on (its number, in parquet), and its cells, or what is wrong with it.
Row = tuple[int, list[Any] | str]


@dataclasses.dataclass(frozen=True)
class CellFile:
  """A file and how it is read. setting: the one that named it, for errors.

  delimiter, quoting: of csv and tsv. Without quoting a quote is a character like others.
  """

  path: str
  setting: str = "data.path"
  encoding: str = "utf-8-sig"
  delimiter: str = ""  # "": a comma in csv, a tab in tsv
  quoting: bool = True

  @property
  def suffix(self) -> str:
    """What the file is, e.g. ".csv"."""
    return Path(self.path).suffix.lower()

  def rows(self, wanted: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """The cells of the wanted columns, row by row; blank lines of csv, tsv and jsonl are no rows.

    Args:
      wanted: (setting, column) pairs.

    Raises:
      ConfigError: a column that is not there once, bytes that are no text, a quote that swallows lines, an unreadable file.
    """
    try:
      yield from READERS[self.suffix](self, wanted)
    except UnicodeError as error:
      raise _undecodable(self) from error
    except OSError as error:
      raise ConfigError(f"{self.setting}={self.path!r}: cannot be read: {error.strerror or error}") from error

  def where(self, number: int) -> str:
    """A row's place in words: "reviews.csv line 3"."""
    return f"{self.path} {'row' if self.suffix == '.parquet' else 'line'} {number}"

  def places(self, found: Sequence[str], wanted: Sequence[tuple[str, str]]) -> list[int]:
    """Where the wanted columns stand among those found."""
    for setting, column in wanted:
      if found.count(column) > 1:
        raise ConfigError(f"{setting}={column!r}: {self.path} has {found.count(column)} columns of that name")
      if column not in found:
        nearest = ", ".join(map(repr, difflib.get_close_matches(column, found, len(found) or 1, 0.0))) or "none"
        raise ConfigError(f"{setting}={column!r}: no such column in {self.path}; its columns, the nearest first: {nearest}")
    return [found.index(column) for _, column in wanted]


def _csv_rows(file: CellFile, wanted: Sequence[tuple[str, str]]) -> Iterator[Row]:
  csv.field_size_limit(MAX_CELL)
  quoting = csv.QUOTE_MINIMAL if file.quoting else csv.QUOTE_NONE
  with open(file.path, encoding=file.encoding, newline="") as stream:
    # strict: otherwise a quote that is never closed would take the rest of the file into one cell without a word
    reader = csv.reader(stream, delimiter=file.delimiter or DELIMITERS[file.suffix], quoting=quoting, strict=True)
    rows = _records(file, reader)
    _, header = next(rows, (1, []))
    if isinstance(header, str):
      raise ConfigError(f"{file.where(1)}: {header}")
    places = file.places([name.strip() for name in header], wanted)
    for line, cells in rows:
      if isinstance(cells, list) and len(cells) != len(header):
        yield line, f"{len(cells)} cells where the first row has {len(header)}"
      else:
        yield line, cells if isinstance(cells, str) else [cells[i] for i in places]


def _records(file: CellFile, reader: Any) -> Iterator[Row]:
  """All cells of each record that is not blank."""
  while True:
    first = reader.line_num + 1
    try:
      cells = next(reader, None)
    except csv.Error as error:
      if reader.line_num > first:  # nobody knows how many rows are inside, so there is nothing to skip
        raise ConfigError(f"{file.path} lines {first} to {reader.line_num}: {QUOTES} ({error})") from error
      yield first, f"{QUOTES} ({error})"
      continue
    if cells is None:
      return
    if cells:
      yield first, cells


def _jsonl_rows(file: CellFile, wanted: Sequence[tuple[str, str]]) -> Iterator[Row]:
  found: list[Row] = []
  columns: dict[str, None] = {}
  with open(file.path, encoding=file.encoding) as stream:
    for number, line in enumerate(stream, 1):
      try:
        value = json.loads(line) if line.strip() else None
      except (ValueError, RecursionError) as error:
        found.append((number, f"bad JSON ({getattr(error, 'msg', 'nested too deeply')})"))
        continue
      if isinstance(value, dict):
        columns.update(dict.fromkeys(value))
        found.append((number, [value.get(column) for _, column in wanted]))
      elif line.strip():
        found.append((number, "not a JSON object"))
  if columns:
    file.places(list(columns), wanted)
  yield from found


def _parquet_rows(file: CellFile, wanted: Sequence[tuple[str, str]]) -> Iterator[Row]:
  import pyarrow
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(file.path) as table:
      file.places(table.schema_arrow.names, wanted)
      number = 0
      for batch in table.iter_batches(columns=sorted({column for _, column in wanted})):
        for cells in zip(*(batch.column(column).to_pylist() for _, column in wanted), strict=True):
          number += 1
          yield number, list(cells)
  except pyarrow.ArrowException as error:
    raise ConfigError(f"{file.setting}={file.path!r}: not a whole parquet file") from error


READERS = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _undecodable(file: CellFile) -> ConfigError:
  """Says where: the reader knows the byte only from the start of its buffer."""
  data, offset = Path(file.path).read_bytes(), 0
  try:
    data.decode(file.encoding)
  except UnicodeDecodeError as error:
    offset = len(data) - len(error.object) + error.start  # utf-8-sig takes the BOM off before it counts
  except UnicodeError:  # no byte to name: UTF-16 without its mark
    pass
  return ConfigError(
    f"{file.setting}={file.path!r}: byte {offset} is not {file.encoding} text; "
    "accepted is another data.encoding, such as cp1252, gb18030 or utf-16"
  )
