"""The loop. `train` reads as a table of contents: start, step, measure one step late, evaluate, save, finish.

Nothing that decides a number lives outside the state and the step: after any interruption the same command continues
with the same losses, bit for bit, as a run that was never stopped.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import checkpoint, cluster, config, device, duration, evaluate, files, metrics, record, sharding, tree
from lm.checkpoint import Checkpoints
from lm.config import ConfigError
from lm.data import paths
from lm.data.preview import preview
from lm.evals.evaluator import Evaluator
from lm.files import write_json
from lm.preflight import fit
from lm.run import Run
from lm.shapes import Batch
from lm.state import TrainState
from lm.track import Clock, Losses, Records, Tracker

MIN_LOSS_SCALE = 1.0  # a loss that is not finite at this scale will not become so at a smaller one


def train(run: Run, workdir: Path, stop: Callable[[], bool] = lambda: False, accept_changes: bool = False) -> dict[str, Any]:
  """Trains to `total_steps` or until `stop()`, and returns what it writes to summary.json.

  Args:
    stop: asked before every step; true saves a checkpoint and returns with status "interrupted".
    accept_changes: go on in a workdir although its config is another one.
  """
  cfg, clock = run.config, Clock()
  record.check(cfg, workdir, accept_changes)
  record.check_built(run, workdir, accept_changes)
  finished = record.read_summary(workdir)
  if finished.get("status") == "finished" and finished["step"] >= run.total_steps:
    print(f"{workdir}: finished at step {finished['step']}; nothing to do")
    return finished
  here, origin = cluster.here(), _find_origin(run, workdir, accept_changes)
  with clock("compile"):
    run = dataclasses.replace(run, program=fit.settle(run.outline, record.kept_accumulation(run, workdir)))
    outline = run.outline
    largest = fit.check(outline)
  with clock("start-up"), fit.watch(outline):
    evaluators = evaluate.make_evaluators(run)
    step, state = origin.step, origin.load(run)
  with (
    fit.watch(outline),
    Records(workdir, paths.cache_folder(), here.index) as records,
    _started(run, records, origin, clock) as (manifest, losses, tracker),
    Checkpoints(workdir / "checkpoints", cfg.keep_checkpoints) as checkpoints,
  ):
    loop = _Loop(run, evaluators, clock, tracker, losses, checkpoints, records, _Taken(step, state))
    loop.resume(origin.progress)
    tracker.say(_describe(run, manifest, origin, largest.peak_bytes))
    with clock("compile"):
      run.program.compile(outline.batches, evaluate.eval_shapes(evaluators))
    eval_every = duration.steps(cfg.eval_every, "config.eval_every", total_steps=run.total_steps)
    save_every = duration.steps(cfg.checkpoint_every, "config.checkpoint_every", total_steps=run.total_steps)
    history = record.History(records.folder)
    try:
      if step == 0 or (step % eval_every == 0 and step < run.total_steps and not history.evaluated(step)):
        loop.evaluate()  # also one that a kill cut short after its step was saved
      for batch in loop.batches():
        if here.stops(loop.taken.number, stop()):
          raise KeyboardInterrupt
        loop.step(batch)
        if loop.taken.number % save_every == 0 or loop.taken.number == run.total_steps:
          loop.save()
        if loop.taken.number % eval_every == 0 and loop.taken.number < run.total_steps:
          loop.evaluate()
      loop.evaluate()
      for text in filter(None, (evaluator.report(records.folder, records.place) for evaluator in evaluators.values())):
        tracker.say(text)
      status = "finished"
    except KeyboardInterrupt:  # asked to stop, or a notebook's stop button
      if any(leaf.is_deleted() for leaf in jax.tree.leaves(loop.taken.state)):
        raise  # in the one moment when a step has taken the old state and not given the new one: the last checkpoint stands
      status = "interrupted"
      loop.save()
      tracker.say(f"interrupted: saved step {loop.taken.number} of {run.total_steps}; the same command continues from there")
    with clock("checkpoint"):
      checkpoints.wait()
    return loop.finish(status, history)


@dataclasses.dataclass(frozen=True)
class _Origin:
  """Where a run starts. run_dir: the workdir whose checkpoint of that step it goes on from, None for a first step."""

  step: int
  words: str
  run_dir: Path | None = None

  @property
  def _path(self) -> Path:
    assert self.run_dir is not None
    return self.run_dir / "checkpoints" / str(self.step)

  @property
  def progress(self) -> dict[str, Any]:
    """What `_Loop.progress` was at that step."""
    return checkpoint.read_progress(self._path) if self.run_dir else {}

  def load(self, run: Run) -> TrainState:
    """The state to go on with."""
    if self.run_dir is None:
      return run.init_state()
    abstract = run.program.abstract_sharded
    if not run.saves_frozen:
      abstract = abstract.replace(frozen=run.init_state().frozen)
    return checkpoint.restore(self._path, abstract, run.saves_frozen)


@contextlib.contextmanager
def _started(run: Run, records: Records, origin: _Origin, clock: Clock) -> Generator[tuple[dict[str, Any], Losses, Tracker]]:
  """Manifest, losses and tracker of a run that goes on from `origin`; on every process, of which the first one talks."""
  here, own = cluster.here(), checkpoint.steps(records.workdir / "checkpoints")[-1:]
  if own != ([origin.step] if origin.run_dir == records.workdir else []):  # until this process held the workdir
    raise ConfigError(f"{records.workdir}: another process trained there meanwhile; the same command goes on from there")
  with contextlib.ExitStack() as stack:
    with clock("start-up"):
      if origin.run_dir:
        records.bring(origin.run_dir)
      here.agree("the start of training", origin.step)  # process 0 now changes what all others have read
      manifest = record.prepare(run, records.workdir, origin.step, records.folder)
    losses = stack.enter_context(Losses(records.folder / "losses.f32"))
    losses.truncate(origin.step)
    console = None if here.first else stack.enter_context(open(os.devnull, "w"))
    tracker = Tracker(records.folder, total_steps=run.total_steps, resume_step=origin.step, stream=console)
    yield manifest, losses, stack.enter_context(tracker)


def _find_origin(run: Run, workdir: Path, accept_changes: bool) -> _Origin:
  """The resume order: the workdir's newest checkpoint, that of `resume_from`, the parameters of `init_from`, random ones."""
  cfg = run.config
  if cfg.init_from and not run.base:
    raise ConfigError(f"{workdir}: its run was loaded without its base, to evaluate it; build.make_run makes one to train")
  if own := checkpoint.steps(workdir / "checkpoints"):
    if own[-1] > run.total_steps:
      raise ConfigError(f"config.total_steps={run.total_steps}: {workdir} has trained for {own[-1]} steps already")
    record.check_schedule(run, workdir, own[-1], accept_changes)
    return _Origin(own[-1], f"step {own[-1]}, the newest checkpoint of {workdir}", workdir)
  if cfg.resume_from:
    other = files.path(cfg.resume_from, "config.resume_from")
    found = checkpoint.steps(other / "checkpoints")
    if not found or found[-1] >= run.total_steps:
      raise ConfigError(
        f"config.resume_from={cfg.resume_from!r}: needs a checkpoint before config.total_steps={run.total_steps};"
        f" it has {', '.join(map(str, found)) or 'none'}"
      )
    changed = [name for name, *_, kind in config.changes(record.load_config(other), cfg) if kind == "identity"]
    changed = [name for name in changed if name not in ("resume_from", "total_steps")]
    changed += [name for name, *_ in record.architecture_changes(run, other) if name not in changed]
    shaped = [
      name for name in changed if name == "optimizer.name" or name.startswith(("model", "peft", "quantizer", "init_from"))
    ]
    if shaped:
      raise ConfigError(
        f"config.resume_from={cfg.resume_from!r}: has another {shaped[0]}, so its state does not fit; use init_from"
      )
    notice = f"; other than there: {', '.join(changed)}" if changed else ""
    return _Origin(found[-1], f"step {found[-1]}, the newest checkpoint of {other} (resume_from{notice})", other)
  if run.base:
    base = run.base
    return _Origin(0, f"step 0, the parameters of {base.workdir} at step {base.step} (init_from; {base.notice})")
  return _Origin(0, "step 0, random parameters")


class _Taken(NamedTuple):
  """How far a run is. One value, so that an interruption finds a state, its number of steps and what is pending together.

  pending: (step, its metrics) of steps whose metrics were not read yet.
  """

  number: int
  state: TrainState
  pending: tuple[tuple[int, dict[str, Any]], ...] = ()


@dataclasses.dataclass
class _Loop:
  """What one call of `train` does at each step; the order of things is in `train`."""

  run: Run
  evaluators: dict[str, Evaluator]
  clock: Clock
  tracker: Tracker
  losses: Losses
  checkpoints: Checkpoints
  records: Records
  taken: _Taken

  def __post_init__(self):
    self.rng = self.run.noise_rng
    self.best_metric = evaluate.best_metric(self.run.config.best_metric, self.evaluators)
    self.tokens = 0
    self.streams = metrics.Streams(dict.fromkeys(self.run.config.all_streams, 0))
    self.window = (time.perf_counter(), 0, 0.0)  # since the last progress line: time, tokens, data wait

  def resume(self, progress: dict[str, Any]) -> None:
    """Goes on counting tokens, seconds and what streams gave where the checkpoint left them."""
    self.tokens = progress.get("tokens", 0)
    known = progress.get("streams", {"tokens": {}})
    if known["tokens"].keys() == self.streams.tokens.keys():
      self.streams = metrics.Streams(**known)
    for name, seconds in progress.get("seconds", {}).items():
      self.clock.seconds[name] = self.clock.seconds.get(name, 0.0) + seconds
    self.window = (time.perf_counter(), self.tokens, self.clock.seconds.get("data wait", 0.0))

  def batches(self) -> Iterator[Batch]:
    """This process's rows of the batches of the steps to take, each made in a thread while the step before it runs."""
    first, total = self.taken.number, self.run.total_steps
    rows = sharding.local_rows(self.run.mesh, self.run.config.batch_size)
    with ThreadPoolExecutor(1) as pool:
      waiting = pool.submit(self.run.loader.batch, first, rows)
      for step in range(first, total):
        with self.clock("data wait"):
          batch = waiting.result()
        if step + 1 < total:
          waiting = pool.submit(self.run.loader.batch, step + 1, rows)
        yield batch

  def step(self, batch: Batch) -> None:
    """Dispatches one step, then reads the metrics of the step before."""
    with self.clock("train"):
      number, state, pending = self.taken
      placed = sharding.place(batch, self.run.mesh, self.run.config.batch_size)
      with jax.transfer_guard("disallow"):  # nothing but what was placed goes to a device
        state, result = self.run.program.train(state, placed, self.rng)
      self.taken = _Taken(number + 1, state, (*pending, (number, result)))
      self.flush(keep=1)

  def flush(self, keep: int = 0) -> None:
    """Waits for the metrics of all pending steps but the last `keep`, and records them; harmless if interrupted."""
    while len(self.taken.pending) > keep:
      step, result = self.taken.pending[0]
      values = jax.device_get(result)
      of_stream_B = self.run.loader.streams_of(step)
      num_tokens = np.bincount(of_stream_B, values["row_tokens"], len(self.streams.tokens)).astype(int)
      loss = np.float32(values["loss"])
      scale = values["loss_scale"].get("scale", 0.0)  # float16 skips a step that overflows, and tries a smaller scale
      if not np.isfinite(loss) and scale < MIN_LOSS_SCALE:
        raise FloatingPointError(f"step {step + 1}: loss is {loss}; the last checkpoint is from before that")
      self.losses.write(step, loss)
      self.taken = self.taken._replace(pending=self.taken.pending[1:])
      self.tokens += int(num_tokens.sum())
      self.streams.add(values["sums"], values["weights"], num_tokens.tolist())
      if (step + 1) % self.run.config.log_every == 0 or step + 1 == self.run.total_steps:
        self._log(step + 1, float(loss), values)

  def evaluate(self) -> None:
    """Runs the evaluators, writes what they find, and keeps the checkpoint if none was better.

    The test split is looked at before the first step and after the last only.
    """
    step, first, last = self.taken.number, self.taken.number == 0, self.taken.number == self.run.total_steps
    with self.clock("train"):
      self.flush()
    with self.clock("eval"):
      params = tree.merge(self.taken.state.params, self.taken.state.frozen)
      found = evaluate.evaluate(self.evaluators, params, periodic_only=not (first or last))
    self.tracker.write(step, found)
    self.records.send()
    shown = [f"{name.removeprefix('eval/')} {value:.4g}" for name, value in found.items() if first or name.startswith("eval/")]
    if shown:
      self.tracker.say(f"step {step}: " + ", ".join(shown))
    if self.best_metric and not first:
      self._keep_best(found)
    self.window = (time.perf_counter(), self.tokens, self.clock.seconds.get("data wait", 0.0))

  def _keep_best(self, found: dict[str, float]) -> None:
    name, best = self.best_metric, self.checkpoints.best
    if name not in found:
      raise ConfigError(f"config.best_metric={name!r}: not among {', '.join(n for n in found if n.startswith('eval/'))}")
    if not math.isfinite(found[name]):
      return
    if best is None or best["metric"] != name or metrics.is_better(name, found[name], best["value"]):
      self.save()
      self.checkpoints.mark_best(self.taken.number, name, found[name])

  def save(self) -> None:
    """Saves a checkpoint once the losses up to it are on disk."""
    with self.clock("train"):
      self.flush()
    with self.clock("checkpoint"):
      self.losses.flush()
      self.records.send()
      progress = {"tokens": self.tokens, "seconds": dict(self.clock.seconds), "tasks": self.run.described_tasks}
      progress["streams"] = dataclasses.asdict(self.streams)
      self.checkpoints.save(self.taken.number, self.taken.state, self.run.saves_frozen, progress)

  def finish(self, status: str, history: record.History) -> dict[str, Any]:
    """Writes summary.json, says where the time went, and returns what it wrote."""
    summary = self._summarise(status, history)
    write_json(self.records.folder / "summary.json", summary)
    for name, value in summary.get("peft", {}).items():
      self.tracker.say(f"{name}: {value}")
    self.tracker.say(_describe_time(summary))
    return summary

  def _summarise(self, status: str, history: record.History) -> dict[str, Any]:
    last, best = history.summary()
    seconds = self.clock.seconds
    names = ("start-up", "compile", "train", "eval", "checkpoint", "data wait")
    self.losses.flush()
    reported = self.run.program.spec.peft.report(self.taken.state.params)
    return (
      {
        "status": status,
        "step": self.taken.number,
        "metrics": last,
        "best": best,
        "params": self.run.program.num_params,
        "tokens": self.tokens,
        "tokens_per_sec": self.tokens / max(seconds.get("train", 0.0) + seconds.get("data wait", 0.0), 1e-9),
        "peak_memory_bytes": peak_memory(),
        "time": {name: round(seconds.get(name, 0.0), 3) for name in names},
        "loss_sha256": self.losses.sha256(),
      }
      | _hash_params(self.taken.state)
      | ({"peft": reported} if reported else {})
    )

  def _log(self, done: int, loss: float, values: dict[str, Any]) -> None:
    now, waited = time.perf_counter(), self.clock.seconds.get("data wait", 0.0)
    elapsed = max(now - self.window[0], 1e-9)
    rate, wait_share = (self.tokens - self.window[1]) / elapsed, (waited - self.window[2]) / elapsed
    self.window = (now, self.tokens, waited)
    means = self.streams.read()
    if len(self.streams.tokens) == 1:
      means = {name.split("/", 1)[1]: value for name, value in metrics.divide(values["sums"], values["weights"]).items()}
    mfu = self._utilisation(rate)
    learning_rate = float(self.run.schedule(done - 1))
    scalars = means | {"loss": loss, "grad_norm": float(values["grad_norm"]), "learning_rate": learning_rate}
    if values["loss_scale"]:
      scalars |= {"loss_scale": float(values["loss_scale"]["scale"]), "skipped_steps": float(values["loss_scale"]["skipped"])}
    scalars |= {"tokens_per_sec": rate, "data_wait": wait_share} | ({"mfu": mfu} if mfu is not None else {})
    self.tracker.write(done, {f"train/{name}": value for name, value in scalars.items()})
    self.tracker.progress(done, loss, learning_rate, rate, mfu=mfu, data_wait=wait_share)

  def _utilisation(self, rate: float) -> float | None:
    devices = self.run.mesh.devices.flatten()
    flops = self.run.program.flops_per_token(self.run.config.seq_len)
    return metrics.flops_utilisation(rate, flops, devices[0].device_kind, len(devices))


def _describe(run: Run, manifest: dict[str, Any], origin: _Origin, peak_bytes: int) -> str:
  """The lines a run starts with: where it runs, how large it is, what it reads, where it starts."""
  params, names = run.program.num_params, run.config.all_streams
  mesh = ", ".join(f"{axis} {size}" for axis, size in manifest["mesh"].items())
  return "\n".join(
    [
      f"mesh: {mesh} of {manifest['device_kind']}; {manifest['cores']} cores; compute in {manifest['dtype']}",
      *filter(None, [sharding.describe_whole(run.program.places)]),
      f"parameters: {params['total']:,}, trainable {params['trainable']:,}; accumulation {manifest['accumulation']}",
      f"memory of a step: {fit.gib(peak_bytes)} on each device",
      run.loader.report(),
      *filter(None, (preview(run.load(name, "train"), run.config.seq_len, run.source(name, "train")) for name in names)),
      f"steps: {run.total_steps}; starts from {origin.words}",
    ]
  )


def _hash_params(state: TrainState) -> dict[str, str | None]:
  """Hash of all parameters, or null and the reason."""
  found = {"params_sha256": tree.sha256(tree.merge(state.params, state.frozen))}
  return found if found["params_sha256"] else found | {"params_sha256_reason": "no process has all of the parameters"}


def _describe_time(summary: dict[str, Any]) -> str:
  """The line a run ends with: its speed, and where its time went."""
  seconds = summary["time"]
  share = seconds["data wait"] / max(seconds["train"] + seconds["data wait"], 1e-9)
  spent = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
  return f"{summary['tokens_per_sec']:,.0f} tokens/s, {share:.2%} of the time of steps was waiting for data; {spent}"


def peak_memory() -> int:
  """Peak bytes in use: of the first device where it counts them, else of this process."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  return device.peak_memory()
