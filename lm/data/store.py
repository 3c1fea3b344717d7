"""A corpus, tokenised once: named ragged columns (values and offsets) in memory-mapped files of a cache folder.

The folder's name is a hash of source, tokenizer and the task's settings that `prepare` reads, so that another masking
rate reads the same files. It is written beside its place and renamed, so that a killed build leaves nothing half-valid.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lm import device
from lm.config import ConfigError
from lm.data import encode
from lm.data.source import Source
from lm.data.tokenizer import Tokenizer

FORMAT = 2
SEGMENT = 1 << 26  # bytes that have a checksum
BLOCK = 1 << 20  # values that are written anew, or bytes that are read, at once


@dataclasses.dataclass(frozen=True)
class Store:
  """The columns of sequences under one task; `tokens` is always among them.

  path: the folder of a split's files, None where the arrays are in memory only. arrays: by column, as `encode.collect` gives
  them.
  """

  path: Path | None
  arrays: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(compare=False, repr=False)

  @property
  def columns(self) -> tuple[str, ...]:
    """Their names, sorted."""
    return tuple(sorted(self.arrays))

  @property
  def num_sequences(self) -> int:
    """Stored sequences."""
    return len(self.offsets("tokens")) - 1

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each sequence, [N] int64."""
    return np.diff(self.offsets("tokens"))

  def values(self, column: str) -> np.ndarray:
    """All sequences' values of a column, one after the other; those of a split are mapped, not read."""
    return self.arrays[column][0]

  def offsets(self, column: str) -> np.ndarray:
    """[N + 1] int64: sequence i has values offsets[i] to offsets[i + 1]."""
    return self.arrays[column][1]


def build(source: Source, tok: Tokenizer, task: Any, cache_dir: Path, workers: int | None = None) -> Store:
  """The store of a source under a task: read if it is there and whole, built if not, by as many workers as `encode` says.

  Raises:
    ConfigError: the source has no examples, or none that gives a sequence; the cache folder cannot be written.
  """
  settings = {name: repr(getattr(task, name)) for name in task.prepare_fields}
  read = sorted({field.column or name for name, field in task.fields.items()})
  identity = [FORMAT, type(task).__name__, settings, read, source.fingerprint(), tok.fingerprint()]
  folder = cache_dir / "store" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
  index = folder / "index.json"
  if folder.exists():
    damage = _damage(folder)
    if damage is None:
      return _open(folder)
    print(f"stored corpus {folder}: {damage}; building it again")
    _discard(folder)
  if len(source) == 0:
    raise ConfigError(f"data {type(source).__name__.lower()!r}, split {source.split!r}: no examples")
  temporary = _beside(folder)
  try:
    temporary.mkdir(parents=True)
  except OSError as error:
    raise ConfigError(f"config.cache_dir={str(cache_dir)!r}: cannot be written ({error.strerror})") from error
  try:
    _write(source, tok, task, temporary, workers)
    try:
      os.replace(temporary, folder)
    except OSError:  # another process was first; its files are the same
      if not index.is_file():
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return _open(folder)


def _open(folder: Path) -> Store:
  columns = json.loads((folder / "index.json").read_text())["columns"]
  mapped = lambda column, part: np.load(folder / f"{column}.{part}.npy", mmap_mode="r")
  return Store(folder, {column: (mapped(column, "values"), mapped(column, "offsets")) for column in columns})


def _write(source: Source, tok: Tokenizer, task: Any, folder: Path, workers: int | None) -> None:
  name, began = type(source).__name__.lower(), time.perf_counter()
  progress, num_examples = encode.make_progress(name, len(source)), 0
  with contextlib.closing(_Columns(folder)) as columns:
    for count, found in encode.encode(source, tok, task, workers):
      columns.add(found)
      num_examples += count
      progress(num_examples, columns.num_tokens)
  if not columns.num_tokens:
    raise ConfigError(f"data {name!r}, split {source.split!r}: no example gives a sequence")
  files = {path.name: _checksum(path) for path in sorted(folder.glob("*.npy"))}
  (folder / "index.json").write_text(json.dumps({"columns": columns.names, "files": files}))
  seconds, size = time.perf_counter() - began, sum(size for size, _ in files.values())
  print(
    f"tokenised data {name!r}, split {source.split!r}: {num_examples:,} examples, {columns.num_tokens:,} tokens,"
    f" {size / 1e6:.1f} MB, in {seconds:.1f} s"
  )


class _Columns:
  """The files of a store, written as its sequences come."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._files: dict[str, tuple[_Array, _Array]] = {}
    self.num_tokens = 0

  @property
  def names(self) -> list[str]:
    return sorted(self._files)

  def add(self, columns: encode.Columns) -> None:
    """Appends what `collect` gave; {} is nothing."""
    if not columns:
      return
    if not self._files:
      paths = {name: [self._folder / f"{name}.{part}.npy" for part in ("values", "offsets")] for name in columns}
      first = lambda name: columns[name][0].dtype
      self._files = {name: (_Array(a, first(name)), _Array(b, np.dtype(np.int64))) for name, (a, b) in paths.items()}
      for _, offsets in self._files.values():
        offsets.add(np.zeros(1, np.int64))
    assert columns.keys() == self._files.keys(), f"sequences have {self.names}, later ones {sorted(columns)}"
    for name, (values, offsets) in columns.items():
      ours, starts = self._files[name]
      starts.add(offsets[1:] + ours.size)
      ours.add(values)
    self.num_tokens += len(columns["tokens"][0])

  def close(self) -> None:
    """Makes the files whole."""
    for pair in self._files.values():
      for array in pair:
        array.close()


class _Array:
  """A one-dimensional .npy file that grows; byte for byte what `np.save` writes. Small natural numbers take two bytes."""

  def __init__(self, path: Path, dtype: np.dtype):
    self._path, self._wide, self.size = path, dtype, 0
    self._dtype = np.dtype(np.uint16) if dtype.kind in "iu" and not path.name.endswith(".offsets.npy") else dtype
    self._file = path.open("wb")
    self._write_header()

  def add(self, values: np.ndarray) -> None:
    """Appends values of the array's dtype."""
    assert values.dtype == self._wide, f"{self._path.name}: {self._wide}, later {values.dtype}"
    if self._dtype != self._wide and (values.min(initial=0) < 0 or values.max(initial=0) >= 1 << 16):
      self._widen()
    self._file.write(np.ascontiguousarray(values, self._dtype).data)
    self.size += len(values)

  def close(self) -> None:
    """Writes how long it has become."""
    self._file.seek(0)
    self._write_header()
    self._file.close()

  def _write_header(self) -> None:
    # numpy leaves room for a longer length in the header, so that it has one size.
    header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.size,)}
    np.lib.format.write_array_header_1_0(self._file, header)

  def _widen(self) -> None:
    """Writes what is there anew in the array's own dtype."""
    self.close()
    small = np.load(self._path, mmap_mode="r") if self.size else np.zeros(0, self._dtype)
    self._dtype, aside = self._wide, self._path.with_suffix(".wide")
    self._file = aside.open("wb")
    self._write_header()
    for first in range(0, self.size, BLOCK):
      self._file.write(small[first : first + BLOCK].astype(self._wide).data)
    os.replace(aside, self._path)


def _damage(folder: Path) -> str | None:
  """What is wrong with a store on disk, or None."""
  try:
    index = json.loads((folder / "index.json").read_text())
    files = {f"{column}.{part}.npy" for column in index["columns"] for part in ("values", "offsets")}
    if files != index["files"].keys():
      return "damaged (index.json)"
    wrong = [name for name, expected in sorted(index["files"].items()) if _checksum(folder / name) != expected]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or not the index that we write
    return f"unreadable ({type(error).__name__})"
  return f"damaged ({', '.join(wrong)})" if wrong else None


def _discard(folder: Path) -> None:
  """Moves a folder away before removing it, so that no other process finds half of it."""
  aside = _beside(folder)
  try:
    os.replace(folder, aside)
  except FileNotFoundError:  # another process was first
    return
  shutil.rmtree(aside)


def _beside(folder: Path) -> Path:
  """A new name next to a folder, on the same file system."""
  return folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")


def _checksum(path: Path) -> list[Any]:
  """[size, crc32 of each SEGMENT bytes], of several segments at once: zlib leaves other threads running."""
  size = path.stat().st_size
  with ThreadPoolExecutor(device.num_cores()) as pool:
    return [size, list(pool.map(lambda start: _crc32(path, start), range(0, size, SEGMENT)))]


def _crc32(path: Path, start: int) -> int:
  value, left = 0, SEGMENT
  with path.open("rb") as file:
    file.seek(start)
    while left and (piece := file.read(min(BLOCK, left))):
      value = zlib.crc32(piece, value)
      left -= len(piece)
  return value
