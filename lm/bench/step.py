"""The train step of a run by the stopwatch, and beside it that of its peer, on the same batches."""

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import device, metrics, sharding
from lm.bench import hf, peer
from lm.bench.turns import Turn, figures, ratios, take_turns, timed
from lm.run import Run
from lm.shapes import INPUTS, Batch
from lm.train import peak_memory


def measure(run: Run, rounds: int, steps: int, with_peer: bool) -> dict[str, Any]:
  """Trains `steps` steps a round, after one step of every shape that is not counted; so does the peer.

  Returns:
    Figures of a round, of real tokens and of examples per second, MFU, peak_memory_bytes (of the process, compilation
    included), compile_seconds; with a peer the like as `peer`, and `turns.ratios`.

  Raises:
    ConfigError: as `peer.make_recipe`.
  """
  batches = [[run.loader.batch(r * steps + i) for i in range(steps)] for r in range(rounds)] + [one_of_each_shape(run)]
  with contextlib.ExitStack() as stack:
    theirs = stack.enter_context(_peer(run, batches, steps)) if with_peer else None
    compile_seconds = timed(lambda: run.program.compile(run.loader.shapes(), []))
    seconds = take_turns([_ours(run, batches), *([theirs.turn] if theirs else [])], rounds)
    found = _figures(run, batches[:-1], seconds[0], peak_memory()) | {"compile_seconds": round(compile_seconds, 2)}
    found |= {"trainable": run.program.num_params["trainable"]}
    if not theirs:
      return found
    other = _figures(run, batches[:-1], seconds[1], theirs.peak_memory()) | {"trainable": theirs.num_trainable}
    return found | {"peer": other, **ratios(*seconds)}


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


def _ours(run: Run, batches: Sequence[Sequence[Batch]]) -> Turn:
  """The run's own steps, as the loop takes them: none is waited for before the next one is started."""
  state, rng = run.init_state(), run.noise_rng

  def train(number: int) -> None:
    nonlocal state
    for batch in batches[number]:
      state, _ = run.program.train(state, sharding.place(batch, run.mesh), rng)
    jax.block_until_ready(state)

  return lambda number: timed(lambda: train(number))


class _Peer:
  """hf.Trainer in a process of its own, which sleeps while the run has its turn."""

  def __init__(self, run: Run, recipe: hf.Recipe, pool: ProcessPoolExecutor, batches: list[list[Batch]], steps: int):
    self._schedule, self._pool, self._steps = run.schedule, pool, steps
    self._rows = [[peer.make_rows(run, batch) for batch in part] for part in batches]
    self.num_trainable = pool.submit(hf.start, recipe).result()

  def turn(self, number: int) -> float:
    rates = [float(self._schedule(max(number, 0) * self._steps + i)) for i in range(len(self._rows[number]))]
    return self._pool.submit(hf.train, self._rows[number], rates).result()

  def peak_memory(self) -> int:
    return self._pool.submit(hf.peak_memory).result()


@contextlib.contextmanager
def _peer(run: Run, batches: list[list[Batch]], steps: int) -> Generator[_Peer]:
  with tempfile.TemporaryDirectory() as folder, process() as pool:
    yield _Peer(run, peer.make_recipe(run, Path(folder)), pool, batches, steps)


def process() -> ProcessPoolExecutor:
  """A process for the other side."""
  return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _figures(run: Run, batches: Sequence[Sequence[Batch]], seconds: Sequence[float], peak_bytes: int) -> dict[str, Any]:
  tokens = [sum(int(np.count_nonzero(batch[INPUTS]["segment_ids"])) for batch in part) for part in batches]
  examples = [len(part) * run.config.batch_size for part in batches]
  found = figures(seconds, tokens=tokens, examples=examples)
  devices = run.mesh.devices.flatten()
  flops = run.program.flops_per_token(run.config.seq_len)
  mfu = metrics.flops_utilisation(found["tokens_per_sec"], flops, devices[0].device_kind, len(devices))
  step_seconds = round(found.pop("seconds") / len(batches[0]), 5)
  return {"step_seconds": step_seconds, **found, "mfu": mfu, "peak_memory_bytes": peak_bytes, "cores": device.num_cores()}
