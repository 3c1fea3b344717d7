"""Predictions for the rows of a file, as jsonl, a chunk at a time: a killed call goes on where it stopped.

Beside OUTPUT stands OUTPUT.origin.json, which says what it is made from, and at the end how many rows it has.
"""

import hashlib
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from lm import plug
from lm.command import READING
from lm.config import ConfigError
from lm.data.rows import BAD_ROWS, RowFile, read_texts
from lm.files import read_json, write_json
from lm.predictor import Predictor

# Rows that are predicted and written at a time. Chunks begin at its multiples, so that a resumed file has the same batches,
# and with them the same bytes, as one that was written without a break.
CHUNK = 1024
SAY_EVERY = 10.0  # seconds between lines about how far it is
OUTPUTS = (".jsonl", ".json")


def predict_file(predictor: Predictor, input: Path, output: Path, task: str = "", batch_size: int = 32, **reading: Any) -> int:
  """Writes one JSON object per row of a csv, tsv, jsonl, parquet or txt file, in its order; returns the number of rows.

  A line has `id` (the row's own, else its number from 0), the row's columns, and what `Predictor.predict` gives; a column
  of the same name as a prediction stands as `input_<name>`. Lines that an earlier call left are kept. A row is bad as in
  training: cells or JSON that are, an empty text. All rows are looked at before the first is predicted.

  Args:
    task: which one, where the run has several that predict.
    reading: some of READING, as the source `table` has them; the others are those of the run's data. on_bad_row="skip"
      gives a bad row a line with `error` in the place of a prediction.

  Raises:
    ConfigError: a bad row, with file and line; an output that is made from something else.
  """
  check_paths(input, output)
  key = predictor.find_task(task)
  if not predictor.tasks[key].reads_texts:
    raise ConfigError(
      f"--mode=predict: reads texts, and the run's task {key!r} rows of several columns; lm.load gives predictions"
    )
  read = _reading(predictor.data.get(key, {}), reading)
  file = RowFile(str(input), "--input", prefix="--", **{name: read[name] for name in ("encoding", "delimiter", "quoting")})
  file.check()
  _check_pair(read["text"], getattr(predictor.tasks[key].reader, "pair", False))
  origin = {"input": _sha256(input), "model": predictor.fingerprint(), "task": key, **read, "text": list(read["text"])}
  beside = output.with_name(output.name + ".origin.json")
  done, size = _resume(output, beside, origin)
  if done == read_json(beside).get("rows"):
    print(f"{output}: finished, {done:,} rows; nothing to do")
    return done
  total = _check_rows(file, read["text"], read["on_bad_row"])
  number = skipped = done // CHUNK * CHUNK
  if skipped:
    print(f"{output}: goes on after {skipped:,} of {total:,} rows", file=sys.stderr)
  num_cut, said = 0, time.monotonic()
  for chunk in _chunks(itertools.islice(_rows(file, read["text"]), skipped, None)):
    predictions, cut = predictor.predict_counted(
      [texts for _, texts, _ in chunk if not isinstance(texts, str)], batch_size, key
    )
    found = iter(predictions)
    results = [{"error": texts} if isinstance(texts, str) else next(found) for _, texts, _ in chunk]
    lines = [_line(number + i, row, result) for i, ((*_, row), result) in enumerate(zip(chunk, results, strict=True))]
    if not number:  # only now, so that bad input leaves nothing behind
      output.parent.mkdir(parents=True, exist_ok=True)
      write_json(beside, origin)
    size = _append(output, size, "".join(lines).encode())
    num_cut, number = num_cut + cut, number + len(chunk)
    if time.monotonic() - said > SAY_EVERY and number < total:
      print(f"{number:,} of {total:,} rows", file=sys.stderr)
      said = time.monotonic()
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
  if output.suffix not in OUTPUTS:
    raise ConfigError(
      f"--output={output}: a JSON object per line is written; accepted are names that end in {' or '.join(OUTPUTS)}"
    )


def _reading(trained: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
  """Every option of READING: as given, else as the options of the run's data have it, else as the source `table` does.

  Raises:
    ConfigError: an unknown option, or a value of another type, by its flag.
  """
  unknown = [name for name in given if name not in READING]
  if unknown:
    raise ConfigError(f"predict_file: unknown option {unknown[0]!r}; there are {', '.join(READING)}")
  fields, hints, found = plug.fields("data", "table"), get_type_hints(plug.find("data", "table")), {}
  for name in READING:
    value = given.get(name, trained.get(name, fields[name].default))
    found[name] = plug.convert(f"--{name}", plug.parse_text(value, hints[name]) if name in given else value, hints[name])
  if found["on_bad_row"] not in BAD_ROWS:
    raise ConfigError(f"--on_bad_row={found['on_bad_row']!r}: accepted are {', '.join(BAD_ROWS)}")
  return found


def _check_pair(columns: Sequence[str], pair: bool) -> None:
  if len(columns) != 1 + pair:
    wanted = "two columns, as in --text=question,answer" if pair else "one column"
    raise ConfigError(f"--text={','.join(columns)}: the run's task reads {wanted}")


def _check_rows(file: RowFile, columns: Sequence[str], on_bad_row: str) -> int:
  """The number of rows; says how many are bad, or raises ConfigError with the first."""
  bad: list[tuple[int, str]] = []
  total = 0
  for number, texts, _ in _rows(file, columns):
    total += 1
    if isinstance(texts, str):
      bad.append((number, texts))
  if not total:
    raise ConfigError(f"{file.path}: has no rows")
  words = (
    f"{file.where(bad[0][0])}: {bad[0][1]}; {len(bad):,} of {total:,} rows {'is' if len(bad) == 1 else 'are'} bad"
    if bad
    else ""
  )
  if bad and on_bad_row == "error":
    raise ConfigError(f"{words}, and --on_bad_row=skip gives such rows a line without a prediction")
  if bad:
    print(f"{words}; their lines have 'error' and no prediction", file=sys.stderr)
  return total


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


def _rows(file: RowFile, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | str, dict[str, Any]]]:
  """(its place, what `predict` reads or what is wrong, its columns) of every row."""
  for number, row in file.rows([("--text", column) for column in columns]):
    values = row if isinstance(row, str) else read_texts(row, columns)
    texts = values if isinstance(values, str) else dict(zip(("text", "text_pair"), values, strict=False))
    yield number, texts, {} if isinstance(row, str) else row


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
