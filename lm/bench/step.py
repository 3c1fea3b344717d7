"""The train step of a run by the stopwatch, and beside it that of its peer, taking turns on the same batches."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lm import device, metrics, sharding
from lm.bench import hf, peer
from lm.run import Run
from lm.shapes import INPUTS, Batch
from lm.train import peak_memory

Turn = Callable[[Sequence[Batch], int], float]  # (batches, step of the first) -> seconds


def measure(run: Run, rounds: int, steps: int, with_peer: bool) -> dict[str, Any]:
  """Trains `steps` steps a round, after one step of every shape that is not counted; so does the peer, in the same round.

  Returns:
    `_figures` of the run, compile_seconds and, with a peer, its figures as `peer`, `ratios` of examples per second, above 1
    where this run is faster, and `ratio`, their median.

  Raises:
    ConfigError: as `peer.make_recipe`.
  """
  with contextlib.ExitStack() as stack:
    theirs = stack.enter_context(_peer(run)) if with_peer else None
    began = time.perf_counter()
    run.program.compile(run.loader.shapes(), [])
    compile_seconds = time.perf_counter() - began
    ours = _trainer(run)
    rounds_of_batches = [[run.loader.batch(r * steps + i) for i in range(steps)] for r in range(rounds)]
    turns: list[Turn] = [ours, *([theirs.turn] if theirs else [])]
    seconds = [_take_turns(turns, batches, r, steps) for r, batches in enumerate([one_of_each_shape(run), *rounds_of_batches])]
    by_side = list(zip(*seconds[1:], strict=True))
    found = _figures(run, rounds_of_batches, by_side[0])
    found |= {"compile_seconds": round(compile_seconds, 2), "trainable": run.program.num_params["trainable"]}
    found |= {"peak_memory_bytes": peak_memory(), "cores": device.num_cores()}
    if theirs:
      other = _figures(run, rounds_of_batches, by_side[1]) | theirs.describe()
      ratios = [b / a for a, b in seconds[1:]]
      found |= {"peer": other, "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
    return found


def one_of_each_shape(run: Run) -> list[Batch]:
  """A batch of every shape, to warm up: the first one of a shape takes memory anew and is up to three times as slow."""
  found: dict[tuple[int, ...], Batch] = {}
  num_shapes = len(run.loader.shapes())
  for step in range(-(-run.loader.rows_per_epoch // run.config.batch_size)):
    batch = run.loader.batch(step)
    found.setdefault(batch[INPUTS]["tokens"].shape, batch)
    if len(found) == num_shapes:
      break
  return list(found.values())


def _take_turns(turns: Sequence[Turn], batches: Sequence[Batch], number: int, steps: int) -> list[float]:
  """Seconds by side; who begins changes from round to round."""
  seconds = [0.0] * len(turns)
  for side in range(len(turns))[:: 1 if number % 2 else -1]:
    seconds[side] = turns[side](batches, max(number - 1, 0) * steps)
  return seconds


def _trainer(run: Run) -> Turn:
  """The run's own steps, as the loop takes them: a batch is placed and the step started before the last one is waited for."""
  state, rng = run.init_state(), run.noise_rng

  def turn(batches: Sequence[Batch], first: int) -> float:
    nonlocal state
    began = time.perf_counter()
    for batch in batches:
      state, result = run.program.train(state, sharding.place(batch, run.mesh), rng)
    float(result["loss"])
    return time.perf_counter() - began

  return turn


class _Peer:
  """hf.Trainer in a process of its own, which sleeps while the run has its turn."""

  def __init__(self, run: Run, recipe: hf.Recipe, pool: ProcessPoolExecutor):
    self._run, self._pool = run, pool
    self._num_trainable = pool.submit(hf.start, recipe).result()

  def turn(self, batches: Sequence[Batch], first: int) -> float:
    rates = [float(self._run.schedule(first + i)) for i in range(len(batches))]
    return self._pool.submit(hf.train, [peer.make_rows(self._run, batch) for batch in batches], rates).result()

  def describe(self) -> dict[str, Any]:
    return {"trainable": self._num_trainable, "peak_memory_bytes": self._pool.submit(hf.peak_memory).result()}


@contextlib.contextmanager
def _peer(run: Run) -> Iterator[_Peer]:
  with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
    yield _Peer(run, peer.make_recipe(run, Path(folder)), pool)


def _figures(run: Run, rounds: Sequence[Sequence[Batch]], seconds: Sequence[float]) -> dict[str, Any]:
  """Of one side: medians over rounds of seconds per step, examples and real tokens per second and MFU.

  spread: the distance of the quartiles of the seconds of a round, as a share of their median.
  """
  steps = len(rounds[0])
  tokens = [sum(int(np.count_nonzero(batch[INPUTS]["segment_ids"])) for batch in batches) for batches in rounds]
  tokens_per_sec = statistics.median(count / spent for count, spent in zip(tokens, seconds, strict=True))
  devices = run.mesh.devices.flatten()
  flops = run.program.flops_per_token(run.config.seq_len)
  mfu = metrics.flops_utilisation(tokens_per_sec, flops, devices[0].device_kind, len(devices))
  middle = statistics.median(seconds)
  low, high = np.quantile(seconds, [0.25, 0.75])
  return {
    "step_seconds": round(middle / steps, 5),
    "spread": round(float(high - low) / middle, 3),
    "examples_per_sec": round(run.config.batch_size * steps / middle, 2),
    "tokens_per_sec": round(tokens_per_sec, 1),
    "mfu": None if mfu is None else round(mfu, 4),
  }
