"""The tensors of a directory of safetensors files, single or sharded with an index, read one at a time.

Reads are plain file reads: pages that the library maps would count as memory of the process, and a checkpoint may be larger
than it. Format: 8 bytes of the header's length, a JSON header, the data.
"""

import dataclasses
import json
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np

from lm.config import ConfigError

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16), "F64": np.dtype("<f8")}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Where a tensor stands. offset: bytes from the start of the file."""

  file: Path
  offset: int
  shape: tuple[int, ...]
  dtype: np.dtype | None  # None: no floating-point number

  def read(self) -> np.ndarray:
    """The whole tensor, as stored."""
    return np.fromfile(self.file, self.dtype, math.prod(self.shape), offset=self.offset).reshape(self.shape)


def scan(directory: Path) -> dict[str, Tensor]:
  """All tensors of a directory by name; reads headers only.

  Raises:
    ConfigError: no safetensors file, a pickle instead of one, a file that is cut off or no safetensors file, or an index
      that names a file or a tensor that is not there.
  """
  index = directory / INDEX
  if not index.is_file():
    if not (directory / SINGLE).is_file():
      raise ConfigError(f"{directory}: {_instead(directory)}")
    return _header(directory / SINGLE)
  try:
    weight_map = json.loads(index.read_text())["weight_map"]
  except (json.JSONDecodeError, KeyError) as error:
    raise ConfigError(f"{index}: not an index of safetensors files, which has a 'weight_map'") from error
  found: dict[str, Tensor] = {}
  for name in sorted(set(weight_map.values())):
    if not (directory / name).is_file():
      raise ConfigError(f"{index}: names the file {name}, which is not there")
    found |= _header(directory / name)
  misplaced = [name for name, file in weight_map.items() if name not in found or found[name].file.name != file]
  if misplaced:
    raise ConfigError(f"{index}: not in the files that it names: {', '.join(sorted(misplaced))}")
  return found


def _instead(directory: Path) -> str:
  pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in directory.glob(pattern))
  if pickles:
    return (
      f"has {pickles[0]} but no {SINGLE}; a pickle runs code of whoever wrote it and is not read:"
      " convert it with transformers' save_pretrained(..., safe_serialization=True)"
    )
  return f"no {SINGLE} and no {INDEX}"


def _header(file: Path) -> dict[str, Tensor]:
  size = os.path.getsize(file)
  with file.open("rb") as stream:
    length = int.from_bytes(stream.read(8), "little")
    try:
      if not 2 <= length <= size - 8:
        raise ValueError(f"its header of {length} bytes does not fit {size} bytes")
      header = json.loads(stream.read(length))
    except ValueError as error:
      raise ConfigError(f"{file}: cut off, or not a safetensors file ({error})") from error
  found, begin = {}, 8 + length
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    tensor = Tensor(file, begin + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES.get(entry["dtype"]))
    num_bytes = entry["data_offsets"][1] - entry["data_offsets"][0]
    if tensor.offset + num_bytes > size:
      raise ConfigError(f"{file}: cut off: {name} of {num_bytes} bytes does not end within its {size} bytes")
    if tensor.dtype is not None and num_bytes != math.prod(tensor.shape) * tensor.dtype.itemsize:
      raise ConfigError(f"{file}: {name} has {num_bytes} bytes, not those of {entry['dtype']} {list(tensor.shape)}")
    found[name] = tensor
  return found
