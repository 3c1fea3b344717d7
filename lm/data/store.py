"""A corpus, tokenised once: named ragged columns (values and offsets) in memory-mapped files of a cache folder.

The folder's name is a hash of source, tokenizer and the task's settings that `prepare` reads, so that another masking
rate reads the same files. It is written beside its place and renamed, so that a killed build leaves nothing half-valid.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data.source import Source
from lm.data.tokenizer import Tokenizer

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Store:
  """The columns of one split under one task; `tokens` is always among them."""

  path: Path
  columns: tuple[str, ...]

  @property
  def num_sequences(self) -> int:
    """Stored sequences."""
    return len(self.offsets("tokens")) - 1

  @property
  def lengths(self) -> np.ndarray:
    """Tokens of each sequence, [N] int64."""
    return np.diff(self.offsets("tokens"))

  def values(self, column: str) -> np.ndarray:
    """All sequences' values of a column, one after the other; mapped, not read."""
    return np.load(self.path / f"{column}.values.npy", mmap_mode="r")

  def offsets(self, column: str) -> np.ndarray:
    """[N + 1] int64: sequence i has values offsets[i] to offsets[i + 1]."""
    return np.load(self.path / f"{column}.offsets.npy", mmap_mode="r")


def build(source: Source, tok: Tokenizer, task: Any, cache_dir: Path) -> Store:
  """The store of a source under a task: read if it is there and whole, built if not.

  Raises:
    ConfigError: the source has no examples, or none that gives a sequence.
  """
  settings = {name: repr(getattr(task, name)) for name in task.prepare_fields}
  identity = [FORMAT, type(task).__name__, settings, source.fingerprint(), tok.fingerprint()]
  folder = cache_dir / "store" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
  index = folder / "index.json"
  if folder.exists():
    damage = _damage(folder)
    if damage is None:
      return Store(folder, tuple(json.loads(index.read_text())["columns"]))
    print(f"stored corpus {folder}: {damage}; building it again")
    shutil.rmtree(folder)
  if len(source) == 0:
    raise ConfigError(f"data {type(source).__name__.lower()!r}, split {source.split!r}: no examples")
  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
  try:
    columns = _write(source, tok, task, temporary)
    try:
      os.replace(temporary, folder)
    except OSError:  # another process was first; its files are the same
      if not index.is_file():
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return Store(folder, columns)


def _write(source: Source, tok: Tokenizer, task: Any, folder: Path) -> tuple[str, ...]:
  parts: dict[str, list[np.ndarray]] = {}
  for i in range(len(source)):
    for sequence in task.prepare(source[i], tok):
      for name, value in sequence.items():
        parts.setdefault(name, []).append(np.atleast_1d(value))
  if "tokens" not in parts:
    raise ConfigError(f"data {type(source).__name__.lower()!r}, split {source.split!r}: no example gives a sequence")
  for name, arrays in parts.items():
    values = np.concatenate(arrays)
    if np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() < 1 << 16:
      values = values.astype(np.uint16)
    np.save(folder / f"{name}.values.npy", values)
    np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *map(len, arrays)], dtype=np.int64))
  files = {path.name: _checksum(path) for path in sorted(folder.glob("*.npy"))}
  (folder / "index.json").write_text(json.dumps({"columns": sorted(parts), "files": files}))
  return tuple(sorted(parts))


def _damage(folder: Path) -> str | None:
  """What is wrong with a store on disk, or None."""
  try:
    files = json.loads((folder / "index.json").read_text())["files"]
    wrong = [name for name, expected in files.items() if _checksum(folder / name) != expected]
  except (OSError, json.JSONDecodeError, KeyError) as error:
    return f"unreadable ({type(error).__name__})"
  return f"damaged ({', '.join(wrong)})" if wrong else None


def _checksum(path: Path) -> list[int]:
  """[size, crc32], read in pieces."""
  value = 0
  with path.open("rb") as file:
    while piece := file.read(1 << 24):
      value = zlib.crc32(piece, value)
  return [path.stat().st_size, value]
