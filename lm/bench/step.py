"""The train step of a run by the stopwatch, and beside it that of its peer, on the same batches."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import device, metrics, sharding
from lm.bench import hf, peer
from lm.bench.turns import Other, Turn, figures, ratios, take_turns, timed
from lm.preflight import fit
from lm.run import Run
from lm.shapes import INPUTS, Batch
from lm.train import peak_memory


def measure(run: Run, rounds: int, steps: int, with_peer: bool) -> dict[str, Any]:
  """Trains `steps` steps a round, after one step of every shape that is not counted; so does the peer.

  Returns:
    Figures of a round, of real tokens and of rows per second (in which a text stands, or several), MFU, peak_memory_bytes (of
    the process, compilation included), compile_seconds; with a peer the like as `peer`, and `turns.ratios`.

  Raises:
    ConfigError: as `peer.make_recipe` and `fit.check`.
  """
  batches = [[run.loader.batch(r * steps + i) for i in range(steps)] for r in range(rounds)]
  # The first step of a shape takes memory anew and is up to three times as slow, so there is one of each before the rounds.
  batches.append([run.loader.batch(step) for step in run.loader.first_steps()])
  with contextlib.ExitStack() as stack:
    theirs = stack.enter_context(_peer(run, batches, steps)) if with_peer else None
    device.reset_peak_memory()
    run, compile_seconds = _compiled(run)
    seconds = take_turns([_ours(run, batches), *([theirs.turn] if theirs else [])], rounds)
    found = _figures(run, batches[:-1], seconds[0], peak_memory()) | {"compile_seconds": round(compile_seconds, 2)}
    found |= {"trainable": run.program.num_params["trainable"]}
    if not theirs:
      return found
    other = _figures(run, batches[:-1], seconds[1], theirs.peak_memory()) | {"trainable": theirs.num_trainable}
    return found | {"peer": other, **ratios(*seconds)}


def _compiled(run: Run) -> tuple[Run, float]:
  """The run with the accumulation that it trains with, and the seconds that this took."""
  began = time.perf_counter()
  run = dataclasses.replace(run, program=fit.settle(run.outline))
  fit.check(run.outline)
  return run, time.perf_counter() - began


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
  """hf.Trainer in another process, on the same batches."""

  def __init__(self, run: Run, recipe: hf.Recipe, other: Other, batches: list[list[Batch]], steps: int):
    self._schedule, self._other, self._steps = run.schedule, other, steps
    self._rows = [[peer.make_rows(run, batch) for batch in part] for part in batches]
    self.num_trainable = other.ask(hf.start, recipe)

  def turn(self, number: int) -> float:
    rates = [float(self._schedule(max(number, 0) * self._steps + i)) for i in range(len(self._rows[number]))]
    return self._other.ask(hf.train, self._rows[number], rates)

  def peak_memory(self) -> int:
    return self._other.ask(device.peak_memory)


@contextlib.contextmanager
def _peer(run: Run, batches: list[list[Batch]], steps: int) -> Generator[_Peer]:
  with tempfile.TemporaryDirectory() as folder, Other() as other:
    yield _Peer(run, peer.make_recipe(run, Path(folder)), other, batches, steps)


def _figures(run: Run, batches: Sequence[Sequence[Batch]], seconds: Sequence[float], peak_bytes: int) -> dict[str, Any]:
  tokens = [sum(int(np.count_nonzero(batch[INPUTS]["segment_ids"])) for batch in part) for part in batches]
  rows = [sum(int((batch[INPUTS]["segment_ids"] > 0).any(1).sum()) for batch in part) for part in batches]
  found = figures(seconds, tokens=tokens, rows=rows)
  devices = run.mesh.devices.flatten()
  flops = run.program.flops_per_token(run.config.seq_len)
  mfu = metrics.flops_utilisation(found["tokens_per_sec"], flops, devices[0].device_kind, len(devices))
  step_seconds = round(found.pop("seconds") / len(batches[0]), 5)
  return {"step_seconds": step_seconds, **found, "mfu": mfu, "peak_memory_bytes": peak_bytes, "cores": device.num_cores()}
