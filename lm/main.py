"""python -m lm.main --config=configs/x.py [--workdir=DIR] [--config.a.b=value ...], and its modes: see --help.

Flags and process set-up, then config -> run -> train. Everything else is in functions that notebooks call too.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lm import cluster, config, device, files
from lm import command as commands
from lm.command import Command
from lm.config import ConfigError


def main(argv: list[str]) -> int:
  """Returns the exit code: 0 done, 1 loss not finite, 2 bad input (one line on stderr), 128 + signal when interrupted."""
  modes = {"help": _help, "list": _list, "show": _show, "train": _train, "evaluate": _evaluate, "predict": _predict}
  try:
    command = commands.parse(argv)
    several = command.mode in commands.FLAGS["coordinator"]
    with cluster.joined(command.cluster) if several else contextlib.nullcontext():
      return modes[command.mode](command)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _help(_command: Command) -> int:
  print(commands.USAGE, end="")
  return 0


def _list(command: Command) -> int:
  from lm import show

  print(show.listing(command.kind))
  return 0


def _show(command: Command) -> int:
  os.environ["JAX_PLATFORMS"] = "cpu"  # shapes need no device, and another process may hold it
  cfg = config.load(command.config, list(command.overrides))
  from lm import show

  show.settings(cfg, *config.origins(command.config, command.overrides)).print()
  print(show.facts(cfg))
  return 0


def _train(command: Command) -> int:
  cfg = config.load(command.config, list(command.overrides))
  workdir = commands.workdir(command, cfg)
  print(set_up_process())
  from lm import build, checkpoint, record, report, train
  from lm.interop import weights

  received: list[int] = []
  stop = stop_on_signals(received)
  record.check_hosts(cfg, workdir)
  record.check(cfg, workdir, command.accept_changes)
  if not command.workdir:
    print(f"workdir: {workdir}")
  run = build.make_run(cfg)
  summary = train.train(run, workdir, stop, command.accept_changes)
  if cluster.here().first:
    report.draw_run(workdir)
  if summary["status"] == "interrupted":
    return 128 + next(iter(received), signal.SIGTERM)  # of several processes, another one may have been asked
  heads = {task.head for task in run.tasks.values()}
  exports = weights.is_written(run.program.spec.model)
  best = checkpoint.read_best(workdir / "checkpoints") is not None
  print("next:", *commands.next_commands(workdir, heads, exports, best), sep="\n  ")
  return 0


def _evaluate(command: Command) -> int:
  from lm import record

  workdir = files.path(command.workdir, "--workdir")
  record.check_hosts(record.load_config(workdir), workdir)
  print(set_up_process())
  from lm import build, evaluate, report

  found = evaluate.evaluate_workdir(build.load_run(workdir), workdir, command.checkpoint)
  rows = [[name, f"{value:.4f}"] for name, value in found["metrics"].items()]
  report.Table(f"{workdir}, step {found['step']}", ["metric", "value"], rows).print()
  print(workdir / "evaluations" / f"{found['step']}.json")
  return 0


def _predict(command: Command) -> int:
  from lm import predict, predictor, record

  workdir = files.path(command.workdir, "--workdir")
  source, target = files.local_path(command.input), files.local_path(command.output)
  record.read_manifest(workdir)
  predict.check_paths(source, target)
  print(set_up_process())
  model = predictor.load(workdir, command.checkpoint)
  rows = predict.predict_file(model, source, target, command.task, **dict(command.reading))
  print(f"{target}: {rows:,} rows, predicted with step {model.step} of {workdir}")
  return 0


def set_up_process() -> str:
  """Quiet libraries, and what was compiled kept in the user's cache folder, unless the environment names another one.

  Returns what jax came up on, as "tpu: 4 x TPU v5e"; refuses the CPU of a machine that has an accelerator.
  """
  import importlib.util
  import logging

  import jax

  from lm.data import paths

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    _keep_compiled(paths.cache_folder() / "compiled")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  logging.getLogger("absl").setLevel(logging.ERROR)
  found = "cpu" if os.environ.get("JAX_PLATFORMS") == "cpu" else device.find_accelerator()
  if found == "cpu" and importlib.util.find_spec("libtpu") and not os.environ.get("JAX_PLATFORMS"):
    jax.config.update("jax_platforms", "cpu")  # libtpu is here to compile for TPUs; to look for one takes it seconds and words
  try:
    devices = jax.devices()
  except RuntimeError as error:  # of JAX_PLATFORMS
    raise ConfigError(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {' '.join(str(error).split())}") from error
  device.check_platform(devices[0].platform, found)
  hosts = f" of {cluster.here().count} processes" if cluster.here().count > 1 else ""
  return f"{devices[0].platform}: {len(devices)} x {devices[0].device_kind}{hosts}"


def _keep_compiled(folder: Path, max_bytes: int = 4 << 30) -> None:
  """Keeps executables there; beyond `max_bytes`, which JAX_COMPILATION_CACHE_MAX_SIZE changes, the least recently used go."""
  import jax

  for kept in folder.glob("*-cache"):  # what a kill left between jax's two files would let no other be written
    if not kept.with_name(kept.name.removesuffix("-cache") + "-atime").exists():
      kept.unlink(missing_ok=True)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  if not os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE"):
    jax.config.update("jax_compilation_cache_max_size", max_bytes)


def stop_on_signals(received: list[int]) -> Callable[[], bool]:
  """The first SIGINT or SIGTERM asks the loop to save and stop, the second ends the process at once."""

  def handle(number, _frame):
    received.append(number)
    signal.signal(number, signal.SIG_DFL)

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handle)
  return lambda: bool(received)


if __name__ == "__main__":
  device.restart_with_huge_pages()
  sys.exit(main(sys.argv[1:]))
