"""Rows of a file with all their columns, one after the other: csv, tsv, jsonl, parquet, and txt with a text per line.

The file is never in memory as a whole, and a row that cannot be read is an error that names its line.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm.config import ConfigError

MAX_CELL = 2**31 - 1  # characters; the csv module refuses cells of more than 131,072 unless told
DELIMITERS = {".csv": ",", ".tsv": "\t"}

Record = tuple[int, dict[str, Any]]  # the line it starts on (its number, in parquet), and its cells by column


def read(path: Path, *, encoding: str = "utf-8-sig", delimiter: str = "", quoting: bool = True) -> Iterator[Record]:
  """Every row of a file, told apart by suffix; blank lines are rows of txt only.

  Args:
    encoding: of all but parquet. delimiter, quoting: of csv and tsv; "" is a comma in csv, a tab in tsv.

  Raises:
    ConfigError: an unknown suffix, a file or a row that cannot be read; with file and line.
  """
  suffix = path.suffix.lower()
  if suffix not in (*DELIMITERS, ".jsonl", ".parquet", ".txt"):
    raise ConfigError(f"{path}: accepted are files that end in .csv, .tsv, .jsonl, .parquet or .txt")
  if not path.is_file():
    raise ConfigError(f"{path}: no such file")
  if suffix == ".parquet":
    yield from _parquet(path)
    return
  with path.open(encoding=encoding, errors="surrogateescape", newline="") as stream:
    lines = _decoded(path, encoding, stream)
    if suffix == ".txt":
      yield from ((number, {"text": line.rstrip("\r\n")}) for number, line in enumerate(lines, 1))
    elif suffix == ".jsonl":
      yield from _jsonl(path, lines)
    else:
      quotes = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
      csv.field_size_limit(MAX_CELL)
      # strict: otherwise a quote that is never closed would take the rest of the file into one cell without a word
      yield from _csv(path, csv.reader(lines, delimiter=delimiter or DELIMITERS[suffix], quoting=quotes, strict=True))


def where(path: Path, number: int) -> str:
  """A row's place in words: "reviews.csv line 3"."""
  return f"{path} {'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"


def _decoded(path: Path, encoding: str, lines: Iterator[str]) -> Iterator[str]:
  for number, line in enumerate(lines, 1):
    if not _encodes(line):
      raise ConfigError(f"{where(path, number)}: not {encoding} text")
    yield line


def _encodes(text: str) -> bool:
  try:
    text.encode()
  except UnicodeEncodeError:  # a byte that was no text, or half a surrogate pair
    return False
  return True


def _csv(path: Path, reader: Any) -> Iterator[Record]:
  header: list[str] = []
  first = 1
  while True:
    try:
      cells = next(reader, None)
    except csv.Error as error:
      raise ConfigError(f"{where(path, first)}: {error}") from error
    if cells is None:
      return
    if cells and not header:
      header = [name.strip() for name in cells]
      twice = sorted({name for name in header if header.count(name) > 1})
      if twice:
        raise ConfigError(f"{where(path, first)}: several columns are called {', '.join(map(repr, twice))}")
    elif cells:
      if len(cells) != len(header):
        raise ConfigError(f"{where(path, first)}: {len(cells)} cells where the first row has {len(header)}")
      yield first, dict(zip(header, cells, strict=True))
    first = reader.line_num + 1


def _jsonl(path: Path, lines: Iterator[str]) -> Iterator[Record]:
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ConfigError(f"{where(path, number)}: bad JSON ({getattr(error, 'msg', 'nested too deeply')})") from error
    if not isinstance(row, dict):
      raise ConfigError(f"{where(path, number)}: not a JSON object")
    if "\\u" in line and not _encodes(json.dumps(row, ensure_ascii=False)):
      raise ConfigError(f"{where(path, number)}: holds half a surrogate pair")
    yield number, row


def _parquet(path: Path) -> Iterator[Record]:
  import pyarrow
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(path) as table:
      rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
      yield from enumerate(rows, 1)
  except pyarrow.ArrowException as error:
    raise ConfigError(f"{path}: not a whole parquet file") from error
