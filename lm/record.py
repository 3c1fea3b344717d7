"""What a run leaves in its workdir: config.json, manifest.json, summary.json; and whether a workdir is this run's.

Execution settings (mesh, kernels, logging) may change when a run is resumed and are recorded; a change of its identity is
refused with the ways out, unless it is accepted.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

import lm
from lm import cluster, config, device, files, hub, metrics, plug
from lm.checkpoint import FORMAT
from lm.config import Config, ConfigError
from lm.data import source
from lm.data.tokenizer import Tokenizer
from lm.files import read_json, write_json
from lm.models.transformer_config import TransformerConfig
from lm.run import Run

# What tells that a folder holds a model: of a run and of Hugging Face, or an adapter of peft.
MODEL_FILES = ("config.json", "adapter_config.json")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "tokenizers")


def load_config(workdir: Path) -> Config:
  """The resolved config that a run left in its workdir.

  Raises:
    ConfigError: no run left one there, or a later version of this code did.
  """
  read_manifest(workdir)
  return config.from_kept(read_json(workdir / "config.json"))


def read_manifest(workdir: Path) -> dict[str, Any]:
  """The manifest.json of a workdir.

  Raises:
    ConfigError: as `load_config`.
  """
  missing = [name for name in ("config.json", "manifest.json") if not (workdir / name).is_file()]
  if missing:
    raise ConfigError(f"{workdir}: no {' and no '.join(missing)}; accepted is the workdir of a run")
  manifest = read_json(workdir / "manifest.json")
  if manifest["format"] > FORMAT:
    raise ConfigError(
      f"{workdir}: has format {manifest['format']}, this version of lm reads formats up to {FORMAT}; install a later lm"
    )
  return manifest


def read_architecture(workdir: Path) -> TransformerConfig:
  """What the run's model is, every field as it was resolved, so that no preset and no base is asked again.

  Raises:
    ConfigError: as `load_config`, or fields that this version does not know.
  """
  kept, hints = read_manifest(workdir).get("architecture", {}), get_type_hints(TransformerConfig)
  unknown = [name for name in kept if name not in hints]
  if unknown or not kept:
    raise ConfigError(
      f"{workdir}: manifest.json has {f'the unknown field architecture.{unknown[0]}' if unknown else 'no architecture'};"
      " it is of another version of lm"
    )
  return TransformerConfig(**{name: plug.convert(f"{workdir}: {name}", value, hints[name]) for name, value in kept.items()})


def find_base(workdir: Path) -> Path | None:
  """The folder of the base of a workdir's run, None without one: where it was, else where config.init_from says.

  Raises:
    ConfigError: it stands at neither place.
  """
  base, given = read_manifest(workdir)["base"], load_config(workdir).init_from
  if not base:
    return None
  holds = lambda path: any((path / name).is_file() for name in MODEL_FILES)
  found = [path for path in (files.path(place, "config.init_from") for place in (base["workdir"], given)) if holds(path)]
  if not found and not files.is_remote(given):
    with contextlib.suppress(ConfigError):  # a folder below ~, or an id of the hub; its sha256 is checked like any other's
      found = [path for path in [hub.resolve(given)] if holds(path)]
  if not found:
    raise ConfigError(
      f"{workdir}: its base is neither at {base['workdir']} nor at {given} (config.init_from); a run that trains only some"
      " parameters needs the others from there, one that compares itself with its base needs all of them"
    )
  return found[0]


def read_summary(workdir: Path) -> dict[str, Any]:
  """The summary.json of a workdir, {} without one."""
  return read_json(workdir / "summary.json")


def check(cfg: Config, workdir: Path, accept_changes: bool = False) -> None:
  """Before anything is built: raises ConfigError if the workdir belongs to a run of another identity.

  A change of `total_steps` alone is left to `check_schedule`, which needs the run.
  """
  if not files.is_remote(workdir):  # a bucket has no folders
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
      raise ConfigError(f"--workdir={workdir}: not a directory" + (f", {there} is a file" if there != workdir else ""))
    if not os.access(there, os.W_OK | os.X_OK):
      raise ConfigError(f"--workdir={workdir}: {there} may not be written to")
  if not (workdir / "config.json").is_file() or accept_changes:
    return
  changed = [change for change in config.changes(load_config(workdir), cfg) if change[3] == "identity"]
  if changed and [name for name, *_ in changed] != ["total_steps"]:
    _check_plugs(cfg)
    raise _another(workdir, ", ".join(f"{name}: {before!r} -> {now!r}" for name, before, now, _ in changed))


def check_hosts(cfg: Config, workdir: Path) -> None:
  """Before anything is built: all processes see one workdir, and have the config and the commit of process 0.

  Process 0 leaves a note in the workdir under a name that is new, which all read.

  Raises:
    ConfigError: on every process, one line that names those for which it is not so.
  """
  here = cluster.here()
  if here.count == 1:
    return
  commit = (_git_state() or {"commit": f"lm {lm.__version__}"})["commit"]
  note = workdir / f".hosts-{here.agree('the name of the note', secrets.token_hex(8))[0]}.json"
  if here.first:
    write_json(note, {"config": config.to_dict(cfg), "sha256": _config_sha256(cfg), "commit": commit})
  here.agree("the note in the workdir", here.index)
  verdicts = here.agree("what the note says", _verdict(read_json(note), cfg, commit, workdir))
  if here.first:
    note.unlink()
  wrong = [f"{here.name(i)} {verdict}" for i, verdict in enumerate(verdicts) if verdict]
  if wrong:
    raise ConfigError(f"{'; '.join(wrong)}; {here.name(0)} leads the run")


def _verdict(note: dict[str, Any], cfg: Config, commit: str, workdir: Path) -> str:
  """What this process has otherwise than the one that left the note, "" for nothing."""
  if not note:
    return f"does not see in --workdir={workdir} what process 0 has just written to its own: it must be one place for all"
  if note["commit"] != commit:
    return f"runs commit {commit[:12]}, not {note['commit'][:12]}"
  if note["sha256"] == _config_sha256(cfg):
    return ""
  changed = config.changes(config.from_dict(note["config"]), cfg)
  return "has another config: " + ", ".join(f"{name}: {theirs!r} -> {own!r}" for name, theirs, own, _ in changed)


def _config_sha256(cfg: Config) -> str:
  return hashlib.sha256(json.dumps(config.to_dict(cfg), sort_keys=True).encode()).hexdigest()


def _check_plugs(cfg: Config) -> None:
  """Raises ConfigError for a plug-in, option or value that does not exist: a slip of the keys is no other identity."""
  for kind in ("peft", "quantizer", "optimizer", "regularizer", "model"):
    value = getattr(cfg, kind)
    if value is not None:
      plug.make(kind, value)
  for name, stream in cfg.all_streams.items():
    plug.make("task", stream.task)
    source.make(cfg, name, "train")


def check_built(run: Run, workdir: Path, accept_changes: bool = False) -> None:
  """Raises ConfigError if, under the same settings, the model or the training data are others than the workdir's run has."""
  if not (workdir / "manifest.json").is_file():
    return
  if (changes := architecture_changes(run, workdir)) and not accept_changes:
    raise _another(workdir, ", ".join(f"{name}: {before!r} -> {now!r}" for name, before, now in changes))
  before, now = read_manifest(workdir)["data"], _data(run)
  changed = [name for name in now if before.get(name, now[name]) != now[name]]
  if changed and not accept_changes:
    raise ConfigError(
      f"data {', '.join(map(repr, changed))}: not what the run in {workdir} was trained on, though the settings are the same;"
      " choose another workdir, or give --accept_changes to train on here with the new data"
    )


def architecture_changes(run: Run, workdir: Path) -> list[tuple[str, Any, Any]]:
  """(setting, old value, new value) of what another preset or base made of the model since a workdir's run started."""
  before, now = (dataclasses.asdict(cfg) for cfg in (read_architecture(workdir), run.program.spec.model.cfg))
  return [(f"model.{name}", before[name], value) for name, value in now.items() if before[name] != value]


def check_schedule(run: Run, workdir: Path, step: int, accept_changes: bool = False) -> None:
  """Refuses another `total_steps`, unless it is larger and the steps taken so far stay what they were.

  Learning rates stay under a constant schedule, and before the decay of wsd, where the warm-up is in steps; the weights of
  streams where their stages are in steps; a method of fine-tuning where its durations are.
  """
  before = read_json(workdir / "manifest.json").get("total_steps", run.total_steps)
  if before == run.total_steps or accept_changes:
    return
  words = f"total_steps: {before} -> {run.total_steps}"
  if run.total_steps < before:
    raise _another(workdir, words)
  now, then = (config.weight_stages(dataclasses.replace(run.config, total_steps=n)) for n in (run.total_steps, before))
  so_far = lambda stages: [(first, weight) for first, weight in stages if first < step]
  for name in (name for name in now if so_far(now[name]) != so_far(then[name])):
    raise _another(workdir, f"{words} changes config.streams.{name}.weight of the {step} steps taken")
  peft = plug.make("peft", run.config.peft)
  if peft.resolve(before) != peft.resolve(run.total_steps):
    raise _another(workdir, f"{words} changes config.peft={run.config.peft.name}, whose durations are shares of it")
  taken = np.arange(step)
  optimizer = run.program.spec.optimizer
  if not np.array_equal(np.asarray(optimizer.make_schedule(before)(taken)), np.asarray(run.schedule(taken))):
    causes = [f"optimizer.schedule={optimizer.schedule!r}"] if optimizer.schedule != "constant" else []
    causes += [f"optimizer.warmup_steps={optimizer.warmup_steps!r}"] if "%" in str(optimizer.warmup_steps) else []
    raise ConfigError(
      f"--workdir={workdir}: {words} changes the learning rates of the {step} steps taken, because of {' and '.join(causes)}"
      " (a constant schedule with warmup_steps in steps can be made longer); choose another workdir, with"
      f" --config.resume_from={workdir} to go on from its state or --config.init_from={workdir} from its parameters,"
      " or give --accept_changes to go on here with the new learning rates"
    )


def _another(workdir: Path, words: str) -> ConfigError:
  return ConfigError(
    f"--workdir={workdir}: belongs to another config ({words}); choose another workdir, with --config.init_from={workdir}"
    " to start from its parameters, or give --accept_changes to go on here with the new values"
  )


def prepare(run: Run, workdir: Path, step: int, folder: Path | None = None) -> dict[str, Any]:
  """Writes config.json, manifest.json and the tokenizer into a folder, that of the run if none is given; returns the manifest.

  Says on stderr if this machine differs from the one before; a changed setting is kept in the manifest's `changes`.
  """
  folder = folder or workdir
  folder.mkdir(parents=True, exist_ok=True)
  manifest, before = _manifest(run), read_json(workdir / "manifest.json")
  if before:
    for name in ("platform", "dtype", "cores", "devices", "accumulation"):
      if before[name] != manifest[name]:
        print(f"{name}: {before[name]} -> {manifest[name]}; losses will agree closely but not to the bit", file=sys.stderr)
    check_base(run, workdir)
    changed = config.changes(load_config(workdir), run.config)
    named = {name for name, *_ in changed}
    changed += [(*change, "") for change in architecture_changes(run, workdir) if change[0] not in named]
    changed += [
      (f"data {name}", old, manifest["data"].get(name), "")
      for name, old in before["data"].items()
      if manifest["data"].get(name) != old
    ]
    manifest["changes"] = before["changes"] + [{"step": step, "name": n, "before": a, "now": b} for n, a, b, _ in changed]
  write_json(folder / "config.json", config.to_dict(run.config))
  write_json(folder / "manifest.json", manifest)
  run.tokenizer.save(folder)
  return manifest


def kept_accumulation(run: Run, workdir: Path) -> int:
  """Micro-batches per step that the workdir's run had on as many devices, 1 without: where an automatic choice begins."""
  before = read_json(workdir / "manifest.json")
  return before["accumulation"] if before.get("devices") == run.mesh.devices.size else 1


def write_imported(
  workdir: Path, cfg: Config, architecture: TransformerConfig, tok: Tokenizer | None, about: dict[str, Any]
) -> None:
  """A workdir of parameters that no run here trained: what `load_config`, `read_manifest` and `read_architecture` ask for.

  about: what the manifest keeps beside: where they are from, the tasks of their heads, how many there are.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / "config.json", config.to_dict(cfg))
  kept = {
    "architecture": dataclasses.asdict(architecture),
    "tokenizer": tok and tok.fingerprint(),
    "base": None,
    "data": {},
    "changes": [],
  }
  write_json(workdir / "manifest.json", {"format": FORMAT, "lm": lm.__version__, **kept, **about})
  if tok is not None:
    tok.save(workdir)


def check_base(run: Run, workdir: Path) -> None:
  """Raises ConfigError if the parameters that the workdir's run started from are others by now."""
  before = read_manifest(workdir)["base"]
  hashes = {run.base.sha256, before["sha256"]} - {None} if run.base and before else set()  # None: nobody could take it
  if len(hashes) > 1:
    raise ConfigError(f"config.init_from={run.config.init_from!r}: its parameters changed since this run started")


class History:
  """Metrics over the run's steps, also those of before an interruption: the latest, the first, the best."""

  def __init__(self, workdir: Path):
    self._path = workdir / "metrics.jsonl"

  def read(self) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, metrics) of every line of metrics.jsonl, nulls (not finite) left out."""
    for line in self._path.read_text().splitlines() if self._path.is_file() else ():
      entry = json.loads(line)
      yield entry["step"], {k: v for k, v in entry.items() if k not in ("step", "time") and v is not None}

  def evaluated(self, step: int) -> bool:
    """Whether an evaluation of that step was written."""
    return any(at == step and any(name.startswith("eval/") for name in values) for at, values in self.read())

  def summary(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The last value of every name (and `step0/<name>`), and the best value of eval metrics with its step."""
    last: dict[str, float] = {}
    best: dict[str, dict[str, float]] = {}
    for step, values in self.read():
      last |= values
      if step == 0:
        last |= {f"step0/{name}": value for name, value in values.items() if name.startswith("eval/")}
      for name, value in values.items():
        if name.startswith("eval/") and (name not in best or metrics.is_better(name, value, best[name]["value"])):
          best[name] = {"value": value, "step": step}
    return last, best


def _manifest(run: Run) -> dict[str, Any]:
  devices = run.mesh.devices.flatten()
  return {
    "format": FORMAT,
    "lm": lm.__version__,
    "git": _git_state(),
    "command": shlex.join(["python", *sys.orig_argv[1:]]),
    "python": platform.python_version(),
    "packages": {name: metadata.version(name) for name in PACKAGES},
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "mesh": dict(run.mesh.shape),
    "dtype": run.program.spec.model.dtype,
    "cores": device.num_cores(),
    "accumulation": run.program.spec.accumulation,
    "total_steps": run.total_steps,
    "params": run.program.num_params,
    "architecture": dataclasses.asdict(run.program.spec.model.cfg),
    "tokenizer": run.tokenizer.fingerprint(),
    "data": _data(run),
    "config_sha256": _config_sha256(run.config),
    "base": _base(run),
    "tasks": run.described_tasks,
    "changes": [],
  }


def _base(run: Run) -> dict[str, Any] | None:
  if run.base is None:
    return None
  return {"workdir": files.absolute(run.base.workdir), "step": run.base.step, "sha256": run.base.sha256}


def _data(run: Run) -> dict[str, str]:
  return {name: run.source(name, "train").fingerprint() for name in run.config.all_streams}


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
