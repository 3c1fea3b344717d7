"""Predictions for the rows of a file, as jsonl, a chunk at a time: a killed call goes on where it stopped.

Beside OUTPUT stands OUTPUT.origin.json, which says what it is made from, and at the end how many rows it has.
"""

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import ConfigError
from lm.data.rows import RowFile
from lm.files import read_json, write_json
from lm.plug import convert
from lm.predictor import Predictor

# Rows that are predicted and written at a time. Chunks begin at its multiples, so that a resumed file has the same batches,
# and with them the same bytes, as one that was written without a break.
CHUNK = 1024


def predict_file(
  predictor: Predictor, input: Path, output: Path, text: Sequence[str] = (), task: str = "", batch_size: int = 32
) -> int:
  """Writes one JSON object per row of a csv, tsv, jsonl, parquet or txt file, in its order; returns the number of rows.

  A line has `id` (the row's own, else its number from 0), the row's columns, and what `Predictor.predict` gives; a column
  of the same name as a prediction stands as `input_<name>`. Lines that an earlier call left are kept.

  Args:
    text: the columns that hold the text or the two texts; those of the run's data if not given.
    task: which one, where the run has several that predict.

  Raises:
    ConfigError: a row that cannot be read or lacks a text, with file and line; an output that is made from something else.
  """
  check_paths(input, output)
  key = predictor.find_task(task)
  options = predictor.data[key]
  columns = tuple(text) or convert("data.text", options.get("text", "text"), tuple[str, ...])
  how = {name: options[name] for name in ("encoding", "delimiter", "quoting") if name in options}
  rows = _rows(RowFile(str(input), "--input", **how), columns)
  origin = {"input": _sha256(input), "model": predictor.fingerprint(), "task": key, "text": list(columns)}
  beside = output.with_name(output.name + ".origin.json")
  done, size = _resume(output, beside, origin)
  if done == read_json(beside).get("rows"):
    print(f"{output}: finished, {done:,} rows; nothing to do")
    return done
  skipped = done // CHUNK * CHUNK
  num_cut, number = 0, skipped
  for chunk in _chunks(itertools.islice(rows, skipped, None)):
    predictions, cut = predictor.predict_counted([texts for texts, _ in chunk], batch_size, key)
    lines = [_line(number + i, row, found) for i, ((_, row), found) in enumerate(zip(chunk, predictions, strict=True))]
    if not number:  # only now, so that bad input leaves nothing behind
      output.parent.mkdir(parents=True, exist_ok=True)
      write_json(beside, origin)
    size = _append(output, size, "".join(lines).encode())
    num_cut, number = num_cut + cut, number + len(chunk)
  if not number:
    raise ConfigError(f"{input}: has no rows")
  write_json(beside, origin | {"rows": number})
  if num_cut:
    warnings.warn(
      f"{num_cut} of {number - skipped} texts are longer than the run's {predictor.max_len} tokens and were cut", stacklevel=2
    )
  return number


def check_paths(input: Path, output: Path) -> None:
  """Raises ConfigError for files that cannot be read and written; needs no model, so it can be asked before one is loaded."""
  RowFile(str(input), "--input").check()
  if output.is_dir() or (output.exists() and output.samefile(input)):
    raise ConfigError(f"--output={output}: is {'a folder' if output.is_dir() else 'the input as well'}; choose another")


def _resume(output: Path, beside: Path, origin: Mapping[str, Any]) -> tuple[int, int]:
  """(complete lines of an output, bytes of those in whole chunks); (0, 0) without an output.

  Raises:
    ConfigError: nothing says what the output is made from, or it is made from something else.
  """
  if not output.exists():
    return 0, 0
  if not beside.exists():
    raise ConfigError(f"{output}: is there already, and no {beside.name} that says what it is made from; choose another output")
  before = read_json(beside)
  other = [name for name, value in origin.items() if before.get(name) != value]
  if other:
    raise ConfigError(
      f"{output}: is there already, made with another {' and '.join(other)}; choose another output or remove it"
    )
  lines = read = size = 0
  with output.open("rb") as file:
    for line in file:
      read += len(line)
      lines += line.endswith(b"\n")
      if lines % CHUNK == 0 and line.endswith(b"\n"):
        size = read
  return lines, size


def _rows(file: RowFile, columns: Sequence[str]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
  """(what `predict` reads, the row) for every row."""
  for number, row in file.rows([("data.text", column) for column in columns]):
    if isinstance(row, str):
      raise ConfigError(f"{file.where(number)}: {row}")
    bare = [column for column in columns if not isinstance(row[column], str)]
    if bare:
      raise ConfigError(f"{file.where(number)}: {bare[0]!r} holds no text")
    yield dict(zip(("text", "text_pair"), (row[column] for column in columns), strict=False)), row


def _chunks(rows: Iterator[Any]) -> Iterator[list[Any]]:
  while chunk := list(itertools.islice(rows, CHUNK)):
    yield chunk


def _line(number: int, row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  own: dict[str, Any] = {}
  for name, value in row.items():
    while name in found or name in own:
      name = f"input_{name}"
    own[name] = _plain(value)
  line = {"id": own.pop("id", number), **own, **found}
  return json.dumps(line, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _plain(value: Any) -> Any:
  """null for a number that is not finite, which JSON has no word for."""
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _append(output: Path, size: int, data: bytes) -> int:
  """Writes data behind the first `size` bytes and returns the new size."""
  with output.open("r+b" if output.exists() else "wb") as file:
    file.truncate(size)
    file.seek(size)
    file.write(data)
  return size + len(data)


def _sha256(path: Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
