"""A corpus, tokenised once: named ragged columns (values and offsets) in memory-mapped files of a cache folder.

The folder's name is a hash of source, tokenizer and the task's settings that `prepare` reads, so that another masking
rate reads the same files. It is written beside its place and renamed, so that a killed build leaves nothing half-valid.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data.source import Source
from lm.data.tokenizer import Tokenizer

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Store:
  """The columns of sequences under one task; `tokens` is always among them.

  path: the folder of a split's files, None where the arrays are in memory only. arrays: by column, as `collect` gives them.
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


def collect(sequences: Iterable[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Ragged columns (values, offsets) of sequences as `prepare` gives them.

  [{"tokens": [5, 6], "label": 1}, {"tokens": [7], "label": 0}] -> {"tokens": ([5 6 7], [0 2 3]), "label": ([1 0], [0 1 2])}.
  """
  parts: dict[str, list[np.ndarray]] = {}
  for i, sequence in enumerate(sequences):
    assert not parts or parts.keys() == sequence.keys(), f"sequences have {sorted(parts)}, sequence {i} {sorted(sequence)}"
    for name, value in sequence.items():
      parts.setdefault(name, []).append(np.atleast_1d(value))
  offsets = lambda arrays: np.cumsum([0, *map(len, arrays)], dtype=np.int64)
  return {name: (np.concatenate(arrays), offsets(arrays)) for name, arrays in parts.items()}


def build(source: Source, tok: Tokenizer, task: Any, cache_dir: Path) -> Store:
  """The store of a source under a task: read if it is there and whole, built if not.

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
    _write(source, tok, task, temporary)
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


def _write(source: Source, tok: Tokenizer, task: Any, folder: Path) -> None:
  columns = collect(sequence for i in range(len(source)) for sequence in task.prepare(source[i], tok))
  if not columns or not len(columns["tokens"][0]):
    raise ConfigError(f"data {type(source).__name__.lower()!r}, split {source.split!r}: no example gives a sequence")
  for name, (values, offsets) in columns.items():
    if values.dtype.kind in "iu" and values.min(initial=0) >= 0 and values.max(initial=0) < 1 << 16:
      values = values.astype(np.uint16)
    np.save(folder / f"{name}.values.npy", values)
    np.save(folder / f"{name}.offsets.npy", offsets)
  files = {path.name: _checksum(path) for path in sorted(folder.glob("*.npy"))}
  (folder / "index.json").write_text(json.dumps({"columns": sorted(columns), "files": files}))


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


def _checksum(path: Path) -> list[int]:
  """[size, crc32], read in pieces."""
  value = 0
  with path.open("rb") as file:
    while piece := file.read(1 << 24):
      value = zlib.crc32(piece, value)
  return [path.stat().st_size, value]
