"""A store that an Apache Beam pipeline builds, on this machine or on as many as its runner has (Dataflow, Flink, Spark).

The pipeline has one element for each part of the store; a worker encodes it as a host of a run would (`lm.data.parts`), and
this process joins them. So the store is byte for byte what `store.build` writes, and a run finds it.
"""

import dataclasses
import functools
import importlib
import pickle
from collections.abc import Sequence
from typing import Any

from lm import plug
from lm.config import ConfigError, Plug
from lm.data import encode, parts, place, store
from lm.data.source import Source
from lm.data.store import Store
from lm.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Work:
  """What a worker needs to write any part of a store; it makes the source itself, from files that it sees too.

  pickled: tokenizer and task. name: of the store's folder in `cache_dir`.
  """

  data: Plug
  split: str
  pickled: bytes
  cache_dir: str
  name: str
  num_parts: int


def build(work: Work, source: Source, options: Sequence[str]) -> Store:
  """The store of `make_work`: read if it is there and whole, built by a pipeline if not; parts that are there are used again.

  options: Beam's, as ["--runner=DirectRunner"].

  Raises:
    ConfigError: Beam is not installed; as `store.build`.
  """
  tok, task = pickle.loads(work.pickled)
  found = place.locate(work.cache_dir, work.name)
  if len(source) and not found.exists():
    _run(work, options)
    parts.seal(found, work.num_parts, source)
  return store.build(source, tok, task, work.cache_dir)


def make_work(data: Plug, source: Source, encoder: tuple[Tokenizer, Any], cache_dir: str, num_parts: int) -> Work:
  """The work on one split. source: that of `data`. encoder: (tokenizer, task).

  Raises:
    ConfigError: no part.
  """
  if num_parts < 1:
    raise ConfigError(f"parts={num_parts}: accepted are 1 and numbers above")
  name = store.find(source, *encoder, cache_dir).local.name
  return Work(data, source.split, pickle.dumps(encoder), cache_dir, name, num_parts)


def write_part(index: int, work: Work) -> None:
  """Writes part `index`, unless it is there and whole."""
  tok, task = _encoder(work.pickled)
  source = _source(work.data, work.split)
  chunks = encode.encode(source, parts.share(len(source), index, work.num_parts), tok, task, workers=1)
  parts.write(chunks, place.locate(work.cache_dir, work.name).part(index, work.num_parts))


@functools.lru_cache(1)
def _encoder(pickled: bytes) -> tuple[Tokenizer, Any]:
  return pickle.loads(pickled)


@functools.lru_cache(1)
def _source(data: Plug, split: str) -> Source:
  """Once in a worker: a source of text files reads all of them to find its documents."""
  return plug.make("data", data, split=split)


def _run(work: Work, options: Sequence[str]) -> None:
  try:
    beam: Any = importlib.import_module("apache_beam")
    kinds: Any = importlib.import_module("apache_beam.options.pipeline_options")
  except ImportError as error:
    raise ConfigError("the package apache-beam is not installed: pip install 'lm[beam]'") from error
  # Without the shuffle a runner would fuse all parts into one piece of work.
  with beam.Pipeline(options=kinds.PipelineOptions(list(options))) as pipeline:
    _ = pipeline | beam.Create(range(work.num_parts)) | beam.Reshuffle() | beam.Map(write_part, work)
