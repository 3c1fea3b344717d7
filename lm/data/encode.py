"""Examples to stored columns: in this process, and where there is more text than is quick, in spawned ones beside it.

Chunks come back in their order, so that the result does not depend on how many processes there are. Workers get the
tokenizer and the task, read no source, and never touch a device. Threads do not help: on two cores SentencePiece and the
tokenizers of Hugging Face were slower in two threads than in one.
"""

import collections
import multiprocessing
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from lm import device
from lm.config import ConfigError
from lm.data.columns import Columns
from lm.data.source import Source, locate
from lm.data.tokenizer import Tokenizer

CHUNK = 1 << 19  # characters that are encoded at once
EXAMPLE = 64  # characters that an example counts beside its text
ALONE = 4  # chunks that are encoded before workers may be started
WORTH = 10.0  # seconds of work that must be left: their imports take seconds of every core
AHEAD = 2  # chunks per worker that wait
MAX_WORKERS = 32
EVERY = 10.0  # seconds between lines of progress, 0.5 on a terminal


class BadExampleError(ConfigError):
  """What is wrong with an example, by its number in its chunk."""

  def __init__(self, number: int, reason: str):
    super().__init__(number, reason)
    self.number, self.reason = number, reason

  def placed(self, source: Source, index: int) -> ConfigError:
    """Says where in the source it is from."""
    place = " ".join(f"{name} {value}" for name, value in locate(source, index).items()).removeprefix("file ")
    return ConfigError(f"data {type(source).__name__.lower()!r}: {place}: {self.reason}")


def collect(sequences: Iterable[Mapping[str, Any]]) -> Columns:
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


def encode(source: Source, examples: range, tok: Tokenizer, task: Any, workers: int | None = None) -> Iterator[Columns]:
  """The columns of one chunk of the source's examples after the other; says on stderr how far it is.

  workers: processes; None is one per core that this process may use, at most MAX_WORKERS.

  Raises:
    ConfigError: a worker died, or an example that the task refuses; it says where that is from.
  """
  progress, done, num_tokens = make_progress(type(source).__name__.lower(), len(examples)), 0, 0
  try:
    for count, columns in _encode(source, examples, tok, task, workers):
      yield columns
      done += count
      num_tokens += len(columns["tokens"][0]) if columns else 0
      progress(done, num_tokens)
  except BadExampleError as error:
    raise error.placed(source, examples[done + error.number]) from error


def _encode(source: Source, examples: range, tok: Tokenizer, task: Any, workers: int | None) -> Iterator[tuple[int, Columns]]:
  """(number of examples, their columns) of every chunk."""
  workers = min(device.num_cores(), MAX_WORKERS) if workers is None else workers
  parts, total, done, began = chunks(source, examples), len(examples), 0, time.perf_counter()
  for number, chunk in enumerate(parts, 1):
    done += len(chunk)
    yield len(chunk), _collect(chunk, tok, task)
    seconds_left = (time.perf_counter() - began) * (total - done) / done
    if workers > 1 and number >= ALONE and seconds_left > WORTH:
      yield from _in_workers(parts, tok, task, workers)


def chunks(source: Source, examples: range) -> Iterator[list[dict[str, Any]]]:
  """These examples of a source in their order, about CHUNK characters at once."""
  chunk, size = [], 0
  for i in examples:
    chunk.append(source[i])
    size += EXAMPLE + sum(len(value) for value in chunk[-1].values() if isinstance(value, str))
    if size >= CHUNK:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk


def _in_workers(parts: Iterator[list], tok: Tokenizer, task: Any, workers: int) -> Iterator[tuple[int, Columns]]:
  context = multiprocessing.get_context("spawn")  # a fork would copy the locks of jax's threads
  pool = ProcessPoolExecutor(workers, context, _start_worker, (pickle.dumps((tok, task)),))
  waiting: collections.deque = collections.deque()
  try:
    for chunk in parts:
      waiting.append((len(chunk), pool.submit(_work, chunk)))
      if len(waiting) > AHEAD * workers:
        count, future = waiting.popleft()
        yield count, future.result()
    yield from ((count, future.result()) for count, future in waiting)
  except BrokenProcessPool as error:
    raise ConfigError(
      "tokenising: a worker process died; a script that starts a run needs its code under if __name__ == '__main__':"
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


_worker: tuple[Tokenizer, Any] | None = None  # of a worker process


def _start_worker(pickled: bytes) -> None:
  """Reads tokenizer and task, which import no jax; a main script that does must not look for the main process's devices."""
  global _worker
  os.environ["JAX_PLATFORMS"] = "cpu"
  _worker = pickle.loads(pickled)


def _work(chunk: list[dict[str, Any]]) -> Columns:
  assert _worker is not None, "the pool calls _start_worker first"
  return _collect(chunk, *_worker)


def _collect(chunk: list[dict[str, Any]], tok: Tokenizer, task: Any) -> Columns:
  return collect(_prepared(chunk, tok, task))


def _prepared(chunk: list[dict[str, Any]], tok: Tokenizer, task: Any) -> Iterator[Mapping[str, Any]]:
  for number, example in enumerate(chunk):
    try:
      yield from task.prepare(example, tok)
    except ConfigError as error:
      raise BadExampleError(number, str(error)) from error


def make_progress(name: str, total: int, clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
  """A function of (examples, tokens) done so far that says on stderr how far a build is, at most every few seconds."""
  began = said = clock()
  terminal = sys.stderr.isatty()

  def progress(examples: int, tokens: int) -> None:
    nonlocal said
    now = clock()
    if now - said < (0.5 if terminal else EVERY):
      return
    said, rate = now, examples / (now - began)
    left = (total - examples) / rate
    line = (
      f"tokenising {name}: {examples:,} of {total:,} examples, {tokens / (now - began) / 1e6:.2f} M tokens/s, {left:.0f} s left"
    )
    print(
      f"\r{line}\x1b[K" if terminal else line, end="" if terminal and examples < total else "\n", file=sys.stderr, flush=True
    )

  return progress
