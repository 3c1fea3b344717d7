"""A corpus, tokenised once: named ragged columns (values and offsets) in memory-mapped files of a cache folder.

The folder's name is a hash of source, tokenizer and the task's settings that `prepare` reads, so that another masking
rate reads the same files. A killed build leaves nothing half-valid; several hosts tokenise a share each.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data import columns, encode, parts, place
from lm.data.parts import Hosts
from lm.data.place import Place
from lm.data.source import Source
from lm.data.tokenizer import Tokenizer

FORMAT = 3
WINDOW = "window"  # the column of a task that gives several sequences of an example: which of them it is, from 0


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

  @property
  def owner_N(self) -> np.ndarray:
    """The example that each sequence is of, by its number from 0."""
    if WINDOW not in self.arrays:
      return np.arange(self.num_sequences)
    return np.cumsum(np.asarray(self.values(WINDOW)) == 0) - 1

  def values(self, column: str) -> np.ndarray:
    """All sequences' values of a column, one after the other; those of a split are mapped, not read."""
    return self.arrays[column][0]

  def offsets(self, column: str) -> np.ndarray:
    """[N + 1] int64: sequence i has values offsets[i] to offsets[i + 1]."""
    return self.arrays[column][1]


def build(
  source: Source, tok: Tokenizer, task: Any, cache_dir: str | Path, workers: int | None = None, hosts: Hosts | None = None
) -> Store:
  """The store of a source under a task: read if it is there and whole, built if not, by as many workers as `encode` says.

  cache_dir: a folder, or a URL (gs://...) of which this machine keeps a copy. hosts: the processes that call this together
  with the same cache_dir, of which each tokenises its share; None is this one alone.

  Raises:
    ConfigError: the source has no examples, or none that gives a sequence; the cache folder cannot be written; another host
      did not do its share.
  """
  found = find(source, tok, task, cache_dir)
  if found.exists():
    wrong = found.fetch()
    if wrong is None:
      return _open(found)
    print(f"stored corpus {found.shared}: {wrong}; building it again")
    found.discard()
  if len(source) == 0:
    raise ConfigError(f"{parts.title(source)}: no examples")
  _make(found, source, tok, task, workers, hosts or Hosts())
  return _open(found)


def find(source: Source, tok: Tokenizer, task: Any, cache_dir: str | Path) -> Place:
  """Where the store of a source under a task is, or will be."""
  settings = {name: repr(getattr(task, name)) for name in task.prepare_fields}
  read = sorted({field.column or name for name, field in task.fields.items()})
  identity = [FORMAT, type(task).__name__, settings, read, source.fingerprint(), tok.fingerprint()]
  identity += [tok.chat_template] if "template" in task.prepare_fields else []
  return place.locate(cache_dir, hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24])


def _make(found: Place, source: Source, tok: Tokenizer, task: Any, workers: int | None, hosts: Hosts) -> None:
  chunks = encode.encode(source, parts.share(len(source), hosts.index, hosts.count), tok, task, workers)
  if hosts.count == 1:
    parts.fill(found, chunks, source)
    return
  parts.write(chunks, found.part(hosts.index, hosts.count))
  parts.wait(found, hosts)
  if found.exists():
    found.parts.discard()  # what this machine has of them
    if wrong := found.fetch():
      raise ConfigError(f"stored corpus {found.shared}: {wrong}, although it was just written")
  else:
    parts.seal(found, hosts.count, source)


def _open(found: Place) -> Store:
  return Store(found.local, columns.read(found.local))
