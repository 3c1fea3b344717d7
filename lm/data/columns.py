"""The files of ragged columns: two .npy files per column and `index.json`, which is written last and has their checksums.

They are written as the sequences come, so that any number of them takes the memory of one chunk. What the files hold does not
depend on how the sequences were cut into chunks.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lm import device

SEGMENT = 1 << 26  # bytes that have a checksum
BLOCK = 1 << 20  # values that are written anew, tokens or bytes that are read, at once
INDEX = "index.json"

Columns = dict[str, tuple[np.ndarray, np.ndarray]]  # by name: all sequences' values, and offsets [N + 1]


def write(chunks: Iterable[Columns], folder: Path) -> tuple[int, int]:
  """Writes the sequences of all chunks into a folder that is there; {} is a chunk of none. Returns their (tokens, bytes)."""
  with contextlib.closing(_Files(folder)) as files:
    for chunk in chunks:
      files.add(chunk)
  checksums = {path.name: _checksum(path) for path in sorted(folder.glob("*.npy"))}
  (folder / INDEX).write_text(json.dumps({"columns": files.dtypes, "files": checksums}))
  return files.num_tokens, sum(size for size, _ in checksums.values())


def read(folder: Path) -> Columns:
  """The columns of a folder, mapped; small natural numbers are uint16 there, whatever they were."""
  mapped = lambda column, part: np.load(folder / f"{column}.{part}.npy", mmap_mode="r")
  return {column: (mapped(column, "values"), mapped(column, "offsets")) for column in _index(folder)["columns"]}


def chunks(folder: Path) -> Iterator[Columns]:
  """What was written into a folder, about BLOCK tokens at once, in the dtypes that were given to `write`."""
  columns = read(folder)
  if not columns:
    return
  ends, dtypes = columns["tokens"][1], _index(folder)["columns"]
  first, last = 0, len(ends) - 1
  while first < last:
    stop = max(first + 1, int(np.searchsorted(ends, ends[first] + BLOCK, "right")) - 1)
    chunk = {}
    for name, (values, offsets) in columns.items():
      part = np.asarray(offsets[first : stop + 1])
      chunk[name] = values[part[0] : part[-1]].astype(dtypes[name]), part - part[0]
    yield chunk
    first = stop


def damage(folder: Path) -> str | None:
  """What is wrong with the files of a folder, or None."""
  try:
    index = _index(folder)
    files = {f"{column}.{part}.npy" for column in index["columns"] for part in ("values", "offsets")}
    if files != index["files"].keys():
      return f"damaged ({INDEX})"
    wrong = [name for name, expected in sorted(index["files"].items()) if _checksum(folder / name) != expected]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # no JSON, or not the index that we write
    return f"unreadable ({type(error).__name__})"
  return f"damaged ({', '.join(wrong)})" if wrong else None


def _index(folder: Path) -> dict[str, Any]:
  """{"columns": {name: dtype that was given to `write`}, "files": {name: checksum}}."""
  return json.loads((folder / INDEX).read_text())


class _Files:
  """The files of a folder, which grow."""

  def __init__(self, folder: Path):
    self._folder = folder
    self._arrays: dict[str, tuple[_Array, _Array]] = {}
    self.num_tokens = 0

  @property
  def dtypes(self) -> dict[str, str]:
    """By column, in the order of their names; as `np.dtype` takes it."""
    return {name: self._arrays[name][0].wide.str for name in sorted(self._arrays)}

  def add(self, columns: Columns) -> None:
    """Appends what `encode.collect` gave; {} is nothing."""
    if not columns:
      return
    if not self._arrays:
      paths = {name: [self._folder / f"{name}.{part}.npy" for part in ("values", "offsets")] for name in columns}
      first = lambda name: columns[name][0].dtype
      self._arrays = {name: (_Array(a, first(name)), _Array(b, np.dtype(np.int64))) for name, (a, b) in paths.items()}
      for _, offsets in self._arrays.values():
        offsets.add(np.zeros(1, np.int64))
    names = sorted(self._arrays)
    assert columns.keys() == self._arrays.keys(), f"sequences have {names}, later ones {sorted(columns)}"
    for name, (values, offsets) in columns.items():
      ours, starts = self._arrays[name]
      starts.add(offsets[1:] + ours.size)
      ours.add(values)
    self.num_tokens += len(columns["tokens"][0])

  def close(self) -> None:
    """Makes the files whole."""
    for pair in self._arrays.values():
      for array in pair:
        array.close()


class _Array:
  """A one-dimensional .npy file that grows; byte for byte what `np.save` writes. Small natural numbers take two bytes."""

  def __init__(self, path: Path, dtype: np.dtype):
    self._path, self.wide, self.size = path, dtype, 0
    self._dtype = np.dtype(np.uint16) if dtype.kind in "iu" and not path.name.endswith(".offsets.npy") else dtype
    self._file = path.open("wb")
    self._write_header()

  def add(self, values: np.ndarray) -> None:
    """Appends values of the array's dtype."""
    assert values.dtype == self.wide, f"{self._path.name}: {self.wide}, later {values.dtype}"
    if self._dtype != self.wide and (values.min(initial=0) < 0 or values.max(initial=0) >= 1 << 16):
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
    self._dtype, aside = self.wide, self._path.with_suffix(".wide")
    self._file = aside.open("wb")
    self._write_header()
    for first in range(0, self.size, BLOCK):
      self._file.write(small[first : first + BLOCK].astype(self.wide).data)
    os.replace(aside, self._path)


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
