"""A store that several hosts build once: each writes the sequences of its share, one of them joins the parts.

Part i of n has the examples from i/n to (i + 1)/n, in their order, so that the parts one after the other are what one process
would have written. A part is whole or not there, so a host that was killed goes on where it was; a whole one is used again.
"""

import dataclasses
import sys
import time
from collections.abc import Iterable

from lm.config import ConfigError
from lm.data import columns
from lm.data.columns import Columns
from lm.data.place import Place
from lm.data.source import Source

POLL = 1.0  # seconds between looks at what the others have written
EVERY = 10.0  # seconds between lines about what is missing


@dataclasses.dataclass(frozen=True)
class Hosts:
  """The processes of a run that build a store together, and which of them this is."""

  index: int = 0  # of this process
  count: int = 1  # processes, each with an index of its own
  deadline: float = 3600.0  # [s] without a new part or the store, after which waiting ends


def share(total: int, index: int, count: int) -> range:
  """The examples of part `index`: share(10, 1, 4) is 2 to 4."""
  return range(index * total // count, (index + 1) * total // count)


def write(chunks: Iterable[Columns], part: Place) -> None:
  """Writes a part, unless it is there and whole. The sequences may be none."""
  if part.exists() and part.fetch() is None:
    return
  part.discard()
  with part.making() as folder:
    columns.write(chunks, folder)


def fill(place: Place, chunks: Iterable[Columns], source: Source) -> None:
  """Writes a store and says its size.

  Raises:
    ConfigError: no sequences.
  """
  name, began = title(source), time.perf_counter()
  with place.making() as folder:
    num_tokens, size = columns.write(chunks, folder)
    if not num_tokens:
      raise ConfigError(f"{name}: no example gives a sequence")
  seconds = time.perf_counter() - began
  print(f"tokenised {name}: {len(source):,} examples, {num_tokens:,} tokens, {size / 1e6:.1f} MB, in {seconds:.1f} s")


def seal(place: Place, count: int, source: Source) -> None:
  """Joins `count` parts to the store, byte for byte what one process would have written, and removes them.

  Raises:
    ConfigError: a part is not whole; it is removed, so that the next start writes it again. No part has sequences.
  """
  parts = [place.part(i, count) for i in range(count)]
  for i, part in enumerate(parts):
    if wrong := part.fetch():
      part.discard()
      raise ConfigError(f"part {i} of {count} of stored corpus {place.shared}: {wrong}; start again to have it written again")
  fill(place, (chunk for part in parts for chunk in columns.chunks(part.local)), source)
  place.parts.discard()


def wait(place: Place, hosts: Hosts) -> None:
  """Returns when the store is there, for host 0 also when all parts are; says what is missing on stderr.

  Raises:
    ConfigError: nothing came for `hosts.deadline` seconds.
  """
  began = said = changed = time.monotonic()
  missing = list(range(hosts.count))
  while not place.exists():
    now, found = time.monotonic(), place.missing_parts(hosts.count)
    if found != missing:
      missing, changed = found, now
    if not missing and hosts.index == 0:
      return
    numbers = ", ".join(map(str, missing))
    lacking = f"no part from host {numbers} of {hosts.count}" if missing else "host 0 has not joined the parts"
    if now - changed > hosts.deadline:
      raise ConfigError(
        f"config.cache_deadline={hosts.deadline:g}: for so many seconds nothing came to {place.shared}: {lacking};"
        " all hosts must see the folder config.cache_dir"
      )
    if now - said > EVERY:
      said = now
      print(f"stored corpus {place.local.name}: {lacking}, {now - began:.0f} s", file=sys.stderr, flush=True)
    time.sleep(POLL)


def title(source: Source) -> str:
  """ "data 'text', split 'train'"."""
  return f"data {type(source).__name__.lower()!r}, split {source.split!r}"
