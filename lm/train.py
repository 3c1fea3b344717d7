"""The loop. `train` reads as a table of contents: start, step, measure one step late, evaluate, save, finish.

Nothing that decides a number lives outside the state and the step: after any interruption the same command continues
with the same losses, bit for bit, as a run that was never stopped.
"""

import dataclasses
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lm
from lm import config, evaluate, metrics, sharding, tree
from lm.checkpoint import FORMAT, Checkpoints
from lm.config import Config, ConfigError
from lm.run import Run
from lm.shapes import INPUTS, Batch
from lm.state import TrainState
from lm.track import Clock, Losses, Tracker

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")


def train(run: Run, workdir: Path, stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
  """Trains to `total_steps` or until `stop()`, and returns what it writes to summary.json.

  Args:
    stop: asked before every step; true saves a checkpoint and returns with status "interrupted".
  """
  cfg, clock = run.config, Clock()
  check_workdir(cfg, workdir)
  finished = read_summary(workdir)
  if finished.get("status") == "finished" and finished["step"] >= run.total_steps:
    print(f"{workdir}: finished at step {finished['step']}; nothing to do")
    return finished
  with clock("start-up"):
    evaluators = evaluate.make_evaluators(run)
    _prepare_workdir(run, workdir)
  checkpoint_dir, losses_path = workdir / "checkpoints", workdir / "losses.f32"
  with Checkpoints(checkpoint_dir, cfg.keep_checkpoints) as checkpoints, Losses(losses_path) as losses:
    with clock("compile"):
      run.program.compile(run.loader.shapes(), evaluate.eval_shapes(evaluators))
    with clock("start-up"):
      state, start = _start(run, checkpoints)
      losses.truncate(start)
    with Tracker(workdir, total_steps=run.total_steps, resume_step=start) as tracker:
      loop = _Loop(run, clock, tracker, losses, History(workdir))
      tracker.say(_describe(run, start))
      if start == 0:
        loop.evaluate(0, state, evaluators, first=True)
      eval_every = config.steps(cfg.eval_every, "config.eval_every", total_steps=run.total_steps)
      save_every = config.steps(cfg.checkpoint_every, "config.checkpoint_every", total_steps=run.total_steps)
      step, status = start, "finished"
      for batch in loop.batches(start):
        if stop():
          status = "interrupted"
          break
        state = loop.step(step, state, batch)
        step += 1
        if step % eval_every == 0 and step < run.total_steps:
          loop.evaluate(step, state, evaluators, periodic_only=True)
        if step % save_every == 0 or step == run.total_steps:
          loop.save(step, state, checkpoints)
      if status == "interrupted":
        loop.save(step, state, checkpoints)
        tracker.say(f"interrupted: saved step {step} of {run.total_steps}; the same command continues from there")
      else:
        loop.evaluate(step, state, evaluators)
      with clock("checkpoint"):
        checkpoints.wait()
      summary = loop.summarise(status, step, state)
      _write_json(workdir / "summary.json", summary)
  return summary


def check_workdir(cfg: Config, workdir: Path) -> None:
  """Raises ConfigError if the workdir belongs to a run whose identity differs (execution settings may change)."""
  path = workdir / "config.json"
  if workdir.exists() and not workdir.is_dir():
    raise ConfigError(f"--workdir={workdir}: not a directory")
  if not path.is_file():
    return
  old = config.from_dict(json.loads(path.read_text()))
  changed = [f"{name}: {before!r} -> {now!r}" for name, before, now, kind in config.changes(old, cfg) if kind == "identity"]
  if changed:
    raise ConfigError(f"--workdir={workdir}: belongs to another config ({'; '.join(changed)}); choose another workdir")


def read_summary(workdir: Path) -> dict[str, Any]:
  """The summary.json of a workdir, {} without one."""
  path = workdir / "summary.json"
  return json.loads(path.read_text()) if path.is_file() else {}


class History:
  """Metrics over the run's steps, also those of before an interruption: the latest, the first, the best."""

  def __init__(self, workdir: Path):
    self._path = workdir / "metrics.jsonl"

  def read(self) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of every line of metrics.jsonl, nulls (not finite) left out."""
    for line in self._path.read_text().splitlines() if self._path.is_file() else ():
      entry = json.loads(line)
      yield entry["step"], {k: v for k, v in entry.items() if k not in ("step", "time") and v is not None}

  def summary(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The last value of every name (and `step0/<name>`), and the best value of eval metrics with its step."""
    last: dict[str, float] = {}
    best: dict[str, dict[str, float]] = {}
    for step, values in self.read():
      last |= values
      if step == 0:
        last |= {f"step0/{name}": value for name, value in values.items() if name.startswith("eval/")}
      for name, value in values.items():
        if not name.startswith("eval/"):
          continue
        sign = 1 if name.rsplit("/", 1)[-1] in ("loss", "perplexity", "bits_per_byte") else -1
        if name not in best or sign * value < sign * best[name]["value"]:
          best[name] = {"value": value, "step": step}
    return last, best


class _Loop:
  """What one call of `train` does at each step; the order of things is in `train`."""

  def __init__(self, run: Run, clock: Clock, tracker: Tracker, losses: Losses, history: History):
    self.run, self.clock, self.tracker, self.losses, self.history = run, clock, tracker, losses, history
    self.rng = run.noise_rng
    self.pending: tuple[int, dict[str, Any], int] | None = None
    self.tokens = 0
    self.window = (time.perf_counter(), 0, 0.0)  # since the last progress line: time, tokens, data wait

  def batches(self, start: int) -> Iterator[Batch]:
    """The placed batches of steps start to total_steps - 1, each made in a thread while the step before it runs."""

    def make(step: int) -> Batch:
      return self.run.loader.batch(step)

    with ThreadPoolExecutor(1) as pool:
      waiting = pool.submit(make, start)
      for step in range(start, self.run.total_steps):
        with self.clock("data wait"):
          batch = waiting.result()
        if step + 1 < self.run.total_steps:
          waiting = pool.submit(make, step + 1)
        yield batch

  def step(self, step: int, state: TrainState, batch: Batch) -> TrainState:
    """Dispatches one step, then reads the metrics of the step before."""
    with self.clock("train"):
      placed = sharding.place(batch, self.run.mesh)
      state, result = self.run.program.train(state, placed, self.rng)
      self.flush()
      self.pending = (step, result, int(np.count_nonzero(batch[INPUTS]["segment_ids"])))
    return state

  def flush(self) -> None:
    """Waits for the pending step's metrics and records them."""
    if self.pending is None:
      return
    step, result, num_tokens = self.pending
    self.pending = None
    values = jax.device_get(result)
    loss = np.float32(values["loss"])
    if not np.isfinite(loss):
      raise FloatingPointError(f"step {step + 1}: loss is {loss}; the last checkpoint is from before that")
    self.losses.append([loss])
    self.tokens += num_tokens
    done = step + 1
    if done % self.run.config.log_every == 0 or done == self.run.total_steps:
      self._log(done, float(loss), values)

  def evaluate(self, step: int, state: TrainState, evaluators: dict, periodic_only: bool = False, first: bool = False) -> None:
    """Runs the evaluators and writes what they find."""
    with self.clock("train"):
      self.flush()
    with self.clock("eval"):
      found = evaluate.evaluate(evaluators, tree.merge(state.params, state.frozen), periodic_only)
    self.tracker.write(step, found)
    shown = [f"{name.removeprefix('eval/')} {value:.4g}" for name, value in found.items() if first or name.startswith("eval/")]
    self.tracker.say(f"step {step}: " + ", ".join(shown))
    self.window = (time.perf_counter(), self.tokens, self.clock.seconds.get("data wait", 0.0))

  def save(self, step: int, state: TrainState, checkpoints: Checkpoints) -> None:
    """Saves a checkpoint once the losses up to it are on disk."""
    with self.clock("train"):
      self.flush()
    with self.clock("checkpoint"):
      self.losses.flush()
      checkpoints.save(step, state, self.run.saves_frozen)

  def summarise(self, status: str, step: int, state: TrainState) -> dict[str, Any]:
    """The contents of summary.json."""
    last, best = self.history.summary()
    seconds = self.clock.seconds
    names = ("start-up", "compile", "train", "eval", "checkpoint", "data wait")
    self.losses.flush()
    return {
      "status": status,
      "step": step,
      "metrics": last,
      "best": best,
      "params": self.run.program.num_params,
      "tokens": self.tokens,
      "tokens_per_sec": self.tokens / max(seconds.get("train", 0.0) + seconds.get("data wait", 0.0), 1e-9),
      "peak_memory_bytes": _peak_memory(),
      "time": {name: round(seconds.get(name, 0.0), 3) for name in names},
      "loss_sha256": self.losses.sha256(),
      "params_sha256": tree.sha256(tree.merge(state.params, state.frozen)),
    }

  def _log(self, done: int, loss: float, values: dict[str, Any]) -> None:
    now, waited = time.perf_counter(), self.clock.seconds.get("data wait", 0.0)
    elapsed = max(now - self.window[0], 1e-9)
    rate, wait_share = (self.tokens - self.window[1]) / elapsed, (waited - self.window[2]) / elapsed
    self.window = (now, self.tokens, waited)
    means = metrics.divide(values["sums"], values["weights"])
    if len(self.run.tasks) == 1:
      means = {name.split("/", 1)[1]: value for name, value in means.items()}
    mfu = self._utilisation(rate)
    learning_rate = float(self.run.schedule(done - 1))
    scalars = means | {"loss": loss, "grad_norm": float(values["grad_norm"]), "learning_rate": learning_rate}
    scalars |= {"tokens_per_sec": rate, "data_wait": wait_share} | ({"mfu": mfu} if mfu is not None else {})
    self.tracker.write(done, {f"train/{name}": value for name, value in scalars.items()})
    self.tracker.progress(done, loss, learning_rate, rate, mfu=mfu, data_wait=wait_share)

  def _utilisation(self, rate: float) -> float | None:
    run, cfg = self.run, self.run.program.spec.model.cfg
    total = run.program.num_params["total"]
    flops = metrics.flops_per_token(total, cfg.num_layers, cfg.model_dim, run.config.seq_len)
    devices = run.mesh.devices.flatten()
    return metrics.flops_utilisation(rate, flops, devices[0].device_kind, len(devices))


def _start(run: Run, checkpoints: Checkpoints) -> tuple[TrainState, int]:
  """The resume order: (1) the newest checkpoint of the workdir, (2) the parameters of init_from, (3) random."""
  step = checkpoints.latest
  if step is None:
    return run.init_state(), 0
  abstract = run.program.abstract_sharded
  if not run.saves_frozen:
    abstract = abstract.replace(frozen=run.init_state().frozen)
  return checkpoints.restore(step, abstract, run.saves_frozen), step


def _prepare_workdir(run: Run, workdir: Path) -> None:
  """Writes config.json, manifest.json and the tokenizer; says if this machine differs from the one before."""
  workdir.mkdir(parents=True, exist_ok=True)
  manifest_path = workdir / "manifest.json"
  manifest = _manifest(run)
  if manifest_path.is_file():
    before = json.loads(manifest_path.read_text())
    for name in ("cores", "devices", "accumulation"):
      if before[name] != manifest[name]:
        print(f"{name}: {before[name]} -> {manifest[name]}; losses will agree closely but not to the bit", file=sys.stderr)
    if run.base and before["base"]["sha256"] != run.base.sha256:
      raise ConfigError(f"config.init_from={run.config.init_from!r}: its parameters changed since this run started")
  _write_json(workdir / "config.json", config.to_dict(run.config))
  _write_json(manifest_path, manifest)
  if run.config.tokenizer != "bytes":
    run.tokenizer.save(str(workdir / "tokenizer.model"))


def _manifest(run: Run) -> dict[str, Any]:
  devices = run.mesh.devices.flatten()
  return {
    "format": FORMAT,
    "lm": lm.__version__,
    "git": _git_state(),
    "python": platform.python_version(),
    "packages": {name: metadata.version(name) for name in PACKAGES},
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "mesh": dict(run.mesh.shape),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "accumulation": run.program.spec.accumulation,
    "total_steps": run.total_steps,
    "params": run.program.num_params,
    "tokenizer": run.tokenizer.fingerprint(),
    "data": {name: run.source(name, "train").fingerprint() for name in run.config.all_streams},
    "config_sha256": hashlib.sha256(json.dumps(config.to_dict(run.config), sort_keys=True).encode()).hexdigest(),
    "base": {"workdir": str(run.base.workdir), "step": run.base.step, "sha256": run.base.sha256} if run.base else None,
    "tasks": {key: dataclasses.asdict(task) for key, task in run.tasks.items()},
  }


def _git_state() -> dict[str, Any] | None:
  """Commit and whether the tree has changes; None outside a checkout."""
  root = Path(lm.__file__).parent.parent
  ask = lambda *words: subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
  try:
    commit = ask("rev-parse", "HEAD")
    if commit.returncode:
      return None
    return {"commit": commit.stdout.strip(), "dirty": bool(ask("status", "--porcelain").stdout.strip())}
  except FileNotFoundError:  # no git on this machine
    return None


def _describe(run: Run, start: int) -> str:
  """The lines a run starts with: where it runs, how large it is, what it reads, where it starts."""
  manifest = _manifest(run)
  params = run.program.num_params
  origin = f"step {start} of the workdir's checkpoint" if start else "random parameters"
  if run.base and not start:
    origin = f"{run.base.workdir} step {run.base.step} ({run.base.notice})"
  return "\n".join(
    [
      f"{manifest['platform']}: {manifest['devices']} x {manifest['device_kind']}, {manifest['cores']} cores",
      f"parameters: {params['total']:,}, trainable {params['trainable']:,}; accumulation {manifest['accumulation']}",
      run.loader.report(),
      f"steps: {run.total_steps}; starts from {origin}",
    ]
  )


def _peak_memory() -> int:
  """Peak bytes in use: of the first device where it counts them, else of this process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  scale = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _write_json(path: Path, value: Any) -> None:
  """Writes whole or not at all."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  temporary.replace(path)
