"""The tensors of a directory of safetensors files, single or sharded with an index, read one at a time.

Reads are plain file reads: pages that the library maps would count as memory of the process, and a checkpoint may be larger
than it. Format: 8 bytes of the header's length, a JSON header, the data.
"""

import dataclasses
import functools
import json
import math
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm.config import ConfigError

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "F64": np.dtype("<f8")}
PIECE = 2**22  # numbers of a tensor that are compared at a time
METADATA = "__metadata__"  # the entry of a header that is no tensor
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that is not read yet. dtype: None if it holds no floating-point numbers. numbers: those from start to stop."""

  shape: tuple[int, ...]
  dtype: np.dtype | None
  numbers: Callable[[int, int], np.ndarray]

  @classmethod
  def computed(cls, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> "Tensor":
    """One of fp32 that is in no file; read gives the whole of it."""
    return cls(shape, np.dtype(np.float32), lambda start, stop: read().reshape(-1)[start:stop])

  def read(self) -> np.ndarray:
    """The whole tensor, as stored."""
    return self.read_flat(0, math.prod(self.shape)).reshape(self.shape)

  def read_flat(self, start: int, stop: int) -> np.ndarray:
    """Some of its numbers in their order in the file."""
    return self.numbers(start, stop)


def equal(a: Tensor, b: Tensor) -> bool:
  """Whether two tensors hold the same floating-point numbers; a piece of each is read at a time."""
  if a.shape != b.shape or a.dtype is None or b.dtype is None:
    return False
  size = math.prod(a.shape)
  return all(
    np.array_equal(a.read_flat(i, min(i + PIECE, size)), b.read_flat(i, min(i + PIECE, size))) for i in range(0, size, PIECE)
  )


def scan(directory: Path) -> dict[str, Tensor]:
  """All tensors of a directory by name; reads headers only.

  Raises:
    ConfigError: no safetensors file, a pickle instead of one, a file that is cut off or no safetensors file, or an index
      that names a file or a tensor that is not there.
  """
  index = directory / INDEX
  if not index.is_file():
    return scan_file(directory / SINGLE, f" and no {INDEX}")
  try:
    weight_map = json.loads(index.read_text())["weight_map"]
    if not all(isinstance(file, str) for file in weight_map.values()):
      raise TypeError
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ConfigError(f"{index}: not an index of safetensors files, which has a 'weight_map' from tensors to files") from error
  files: dict[str, dict[str, Tensor]] = {}
  for name in sorted(set(weight_map.values())):
    if not (directory / name).is_file():
      raise ConfigError(f"{index}: names the file {name}, which is not there")
    files[name] = scan_file(directory / name)
  misplaced = [name for name, file in weight_map.items() if name not in files[file]]
  if misplaced:
    raise ConfigError(f"{index}: not in the files that it names: {', '.join(sorted(misplaced))}")
  return {name: tensor for tensors in files.values() for name, tensor in tensors.items()}


def scan_file(file: Path, nor: str = "") -> dict[str, Tensor]:
  """The tensors of one file; errors as `scan`. nor: what else was looked for, said where it is not there."""
  header, begin = _read_header(file, nor)
  size = os.path.getsize(file)
  return {name: _tensor(file, name, entry, begin, size) for name, entry in header.items() if name != METADATA}


def read_metadata(file: Path) -> dict[str, str]:
  """What the header of a file says beside its tensors; errors as `scan_file`."""
  return _read_header(file)[0].get(METADATA) or {}


def _read_header(file: Path, nor: str = "") -> tuple[dict[str, Any], int]:
  """The header of a file, and the byte where its data begin."""
  if not file.is_file():
    raise ConfigError(f"{file.parent}: {_instead(file, nor)}")
  size = os.path.getsize(file)
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    try:
      if not 2 <= length <= size - 8:
        raise ValueError(f"its header of {length} bytes does not fit {size} bytes")
      header = json.loads(stream.read(length))
      if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    except (ValueError, RecursionError) as error:
      raise ConfigError(f"{file}: cut off, or not a safetensors file ({error})") from error
  return header, 8 + length


def _tensor(file: Path, name: str, entry: Any, begin: int, size: int) -> Tensor:
  """One entry of a header. begin: byte of the file where its data begin. size: bytes of the file."""
  try:
    kind, shape = entry["dtype"], tuple(map(operator.index, entry["shape"]))
    start, stop = map(operator.index, entry["data_offsets"])
    if not 0 <= start <= stop or min(shape, default=0) < 0 or not isinstance(kind, str):
      raise ValueError
  except (ValueError, KeyError, TypeError) as error:
    raise ConfigError(f"{file}: not a safetensors file, its header says of {name}: {str(entry)[:80]!r}") from error
  if begin + stop > size:
    raise ConfigError(f"{file}: cut off: {name} of {stop - start} bytes does not end within its {size} bytes")
  dtype = DTYPES.get(kind)
  if dtype is not None and stop - start != math.prod(shape) * dtype.itemsize:
    raise ConfigError(f"{file}: {name} has {stop - start} bytes, not those of {kind} {list(shape)}")
  return Tensor(shape, dtype, functools.partial(_numbers, file, begin + start, dtype))


def _instead(file: Path, nor: str) -> str:
  pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in file.parent.glob(pattern))
  if pickles:
    return (
      f"has {pickles[0]} but no {file.name}; a pickle runs code of whoever wrote it and is not read:"
      " convert it with save_pretrained(..., safe_serialization=True)"
    )
  return f"no {file.name}{nor}"


def _numbers(file: Path, offset: int, dtype: np.dtype | None, start: int, stop: int) -> np.ndarray:
  assert dtype is not None, f"{file}: no floating-point number"
  return np.fromfile(file, dtype, stop - start, offset=offset + start * dtype.itemsize)
