"""Checkpoints by the stopwatch: how long the loop waits, until they are durable, and to read them back."""

import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from lm import checkpoint, sharding
from lm.bench.turns import figures
from lm.run import Run


def measure(run: Run, rounds: int, folder: str) -> dict[str, Any]:
  """Saves and restores the run's state after its first step `rounds` times, after once that is not counted.

  Args:
    folder: where the checkpoints are, as a workdir would be.

  Returns:
    `turns.figures` of `blocked` (until the loop may go on), `save` (until Orbax has committed it; the system may still hold
    it in memory) and `restore` (from there), with bytes per second of the latter two, and `bytes` of a checkpoint.
  """
  batch, abstract = run.loader.batch(0), run.program.abstract_sharded
  run.program.compile([batch], [])
  # Moments of nothing but zeros would take no room.
  state, _ = run.program.train(run.init_state(), sharding.place(batch, run.mesh), run.noise_rng)
  spent: dict[str, list[float]] = {"blocked": [], "save": [], "restore": []}
  with tempfile.TemporaryDirectory(dir=folder) as made, checkpoint.Checkpoints(Path(made)) as checkpoints:
    for step in range(rounds + 1):
      began = time.perf_counter()
      checkpoints.save(step, state, run.saves_frozen, {})
      blocked = time.perf_counter() - began
      checkpoints.wait()
      saved = time.perf_counter() - began
      size = sum(path.stat().st_size for path in (Path(made) / str(step)).rglob("*") if path.is_file())
      began = time.perf_counter()
      jax.block_until_ready(checkpoint.restore(Path(made) / str(step), abstract, run.saves_frozen).params)
      for name, seconds in zip(spent, (blocked, saved, time.perf_counter() - began), strict=True):
        spent[name] += [seconds] * (step > 0)
  rates = lambda name: {} if name == "blocked" else {"bytes": [size] * rounds}
  return {"bytes": size, **{name: figures(seconds, **rates(name)) for name, seconds in spent.items()}}
