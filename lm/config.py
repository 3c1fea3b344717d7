"""The config: every default once, overrides parsed and resolved against dataclass fields.

No jax here. A config file holds only what differs from the defaults; `load` adds overrides and checks everything that can
be checked without a device. Fields marked as execution may change when a run is resumed, all others are its identity.
"""

import dataclasses
import difflib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from lm import duration
from lm.duration import Weight
from lm.plug import ConfigError, Plug, convert, kinds_with, parse_plug, parse_text

# Settings of config.json in older workdirs -> their names now.
RENAMED = {"max_device_tokens": "tokens_per_device"}
DTYPES = ("auto", "float32", "bfloat16", "float16")
REMAT = ("none", "dots", "block", "full", "offload")
ATTENTION = ("auto", "plain", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices per mesh axis; -1 takes the rest. Rows of a batch are split over replica, data, fsdp and expert."""

  replica: int = 1  # [devices] copies of the model across the slices of a TPU, a multiple of their number
  data: int = -1  # [devices] copies of the model inside a slice
  fsdp: int = 1  # [devices] parts of each parameter, gathered where it is read
  sequence: int = 1  # [devices] parts of each row: keys and values are gathered
  tensor: int = 1  # [devices] parts of heads, hidden units and vocabulary; between sublayers of each row
  expert: int = 1  # [devices] parts of the experts, which rows reach by all-to-all


@dataclasses.dataclass(frozen=True)
class Stream:
  """One task on one source."""

  task: Plug  # objective
  data: Plug  # source
  weight: Weight = 1.0  # share of rows, relative to the other streams'; stages of (first step, weight) change it


def _execution(default: Any) -> Any:
  """A setting that may change when a run is resumed; every other one is part of the run's identity."""
  return dataclasses.field(default=default, metadata={"kind": "execution"})


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run. The comment behind a field is what `--mode=show` says about it; its unit stands in brackets."""

  seed: int = 0  # init_seed and data_seed follow it unless set
  init_seed: int | None = None  # of random parameters
  data_seed: int | None = None  # of order and corruption
  total_steps: int | str = 1000  # [steps] length of the run, also as '3 epochs', '10M tokens', '50k examples'
  batch_size: int = 8  # [rows] per optimizer step, over all devices
  seq_len: int = 256  # [tokens] per row
  length_buckets: tuple[int, ...] = ()  # [tokens] row lengths to pad to, the last is seq_len; () always pads to seq_len
  tokens_per_device: int | str | None = _execution(None)  # [tokens] at once, more is accumulated; auto: the most that fits
  model: Plug | None = None  # preset, with fields to change; unset takes that of init_from
  task: Plug | None = None  # objective; with data the one stream of a run
  data: Plug | None = None  # source; with task the one stream of a run
  streams: tuple[tuple[str, Stream], ...] = ()  # several streams by name, instead of task and data
  peft: Plug = Plug("full")  # what trains and what is added around the model
  quantizer: Plug | None = None  # keeps frozen kernels of the backbone in 4 bits (nf4) or 8 (int8); none
  optimizer: Plug = Plug("adamw")  # update rule and schedule
  regularizer: Plug | None = None  # what training adds to the loss of any task by running a batch again; none
  label_smoothing: float = 0.0  # share of each target that is spread over all classes, in training
  z_loss: float = 0.0  # weight of the squared log of the softmax's normaliser, in training; 1e-4 keeps logits small
  mesh: Mesh = _execution(Mesh())  # [devices] per mesh axis, -1 takes the rest
  tokenizer: str = ""  # SentencePiece .model file, Hugging Face folder or 'bytes'; unset takes that of init_from
  init_from: str = ""  # workdir whose parameters to start from, at step 0
  resume_from: str = ""  # workdir whose newest state to go on from: parameters, optimizer, step
  dtype: str = "auto"  # of compute: auto, float32, bfloat16 or float16; auto is what the device is fast at
  sharding: tuple[str, ...] = _execution(())  # 'PATTERN: dim=axis dim=none' for parameters; the first match precedes the table
  attention: str = _execution("auto")  # auto: the device's kernel where it can; plain; splash (TPU) or cudnn (GPU): or an error
  remat: str = _execution("none")  # what the backward pass recomputes: none, dots, block, full or offload
  scan_unroll: int = _execution(1)  # [layers] per iteration of the scan over layers: a larger program, fewer copies
  loss_chunk: int = _execution(0)  # [tokens] per chunk of head and cross-entropy; 0: as many as 128 MiB of logits hold
  evaluators: tuple[tuple[str, Plug], ...] = _execution(())  # by name; none: those of the tasks
  eval_every: int | str = _execution("10%")  # [steps] or a share of total_steps
  checkpoint_every: int | str = _execution("20%")  # [steps] or a share of total_steps
  best_metric: str = _execution("auto")  # eval/<evaluator>/<metric> to keep the best checkpoint by; auto: the first's; '': none
  keep_checkpoints: int = _execution(2)  # newest checkpoints kept
  log_every: int = _execution(10)  # [steps] per line of metrics.jsonl
  data_dir: str = _execution("")  # folder or URL that relative paths of data are below; unset is the current folder
  cache_dir: str = _execution("")  # folder of tokenised data that all hosts see, also gs://; unset is ~/.cache/lm
  cache_deadline: int = _execution(3600)  # [s] to wait for other hosts that tokenise, from the last that was heard of one

  @property
  def all_streams(self) -> dict[str, Stream]:
    """Streams by name; a run of one task and data has one, named after the task."""
    if self.streams:
      return dict(self.streams)
    assert self.task is not None and self.data is not None
    return {self.task.name: Stream(self.task, self.data)}


FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def load(path: str, overrides: dict[str, Any] | list[tuple[str, Any]] | None = None) -> Config:
  """The config of a file 'configs/x.py' or 'configs/x.py:argument', with overrides by dotted name, in their order.

  >>> load("configs/tiny.py", {"optimizer.learning_rate": 3e-4, "peft": "lora(rank=16)"})  # doctest: +SKIP
  """
  values = _run_file(path)
  pairs = list(overrides.items()) if isinstance(overrides, dict) else overrides or []
  for name, value in pairs:
    _override(values, Config, name.split("."), value, "config")
  for name, value in pairs:
    if not _has(values, name.split(".")):
      raise ConfigError(f"config.{name}={value}: dropped by a later change of the name; give a name before its options")
  return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Config:
  """A checked Config from plain dicts, as config files and config.json hold them."""
  return _checked(_record("config", values, Config))


def from_kept(values: Mapping[str, Any]) -> Config:
  """The Config of a workdir's config.json, also of one that was written before settings got their present names."""
  return from_dict({RENAMED.get(name, name): value for name, value in values.items()})


def to_dict(cfg: Config) -> dict[str, Any]:
  """Plain JSON values; from_dict(to_dict(cfg)) == cfg."""

  def plain(value):
    if isinstance(value, Plug):
      return {name: plain(option) for name, option in value.to_dict().items()}
    if isinstance(value, Mesh | Stream):
      return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [plain(item) for item in value] if isinstance(value, tuple) else value

  found = {name: plain(getattr(cfg, name)) for name in FIELDS}
  for name in ("streams", "evaluators"):
    found[name] = {key: plain(value) for key, value in getattr(cfg, name)}
  return found


def changes(old: Config, new: Config) -> list[tuple[str, Any, Any, str]]:
  """(dotted name, old value, new value, "identity" or "execution") of every setting that differs."""
  before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
  names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
  kind = lambda name: "identity" if is_identity(name) else "execution"
  return [(name, before.get(name), after.get(name), kind(name)) for name in names]


def weight_stages(cfg: Config) -> dict[str, tuple[tuple[int, float], ...]]:
  """(first step, weight) of every stage of each stream: 3.0 is ((0, 3.0),), "50%" of 1000 steps is 500.

  Raises:
    ConfigError: stages that do not rise from step 0 to before the last, a weight below 0, a stage without a stream.
  """
  streams = cfg.all_streams
  if not any(isinstance(stream.weight, tuple) for stream in streams.values()):
    return {name: duration.stages(f"config.streams.{name}.weight", stream.weight, {}) for name, stream in streams.items()}
  if "epoch" in str(cfg.total_steps):
    raise ConfigError(
      f"config.total_steps={cfg.total_steps!r}: an epoch has no fixed length where weights of config.streams change;"
      " accepted are steps, tokens and examples"
    )
  units: dict[str, int] = {"batch_size": cfg.batch_size, "seq_len": cfg.seq_len}
  units["total_steps"] = duration.steps(cfg.total_steps, "config.total_steps", **units)
  found = {name: duration.stages(f"config.streams.{name}.weight", stream.weight, units) for name, stream in streams.items()}
  for first in sorted({step for stages in found.values() for step, _ in stages}):
    if not any(duration.weight_at(stages, first) for stages in found.values()):
      raise ConfigError(f"config.streams: no stream has a weight above 0 from step {first} on")
  return found


def is_identity(name: str) -> bool:
  """Whether a setting, by dotted name, decides the run's numbers; an execution setting may change when it is resumed."""
  field = FIELDS.get(name.split(".")[0])
  return field is None or field.metadata.get("kind") != "execution"


def origins(path: str, overrides: Iterable[tuple[str, Any]]) -> tuple[set[str], set[str]]:
  """Dotted names that the file sets, and that the overrides set; a name stands for all below it."""
  flags: dict[str, Any] = {}
  for name, value in overrides:
    _override(flags, Config, name.split("."), value, "config")
  return set(_flatten(_run_file(path))), set(_flatten(flags))


def _run_file(path: str) -> dict[str, Any]:
  file, _, argument = path.partition(":")
  if not Path(file).is_file():
    near = difflib.get_close_matches(file, map(str, Path(file).parent.glob("*.py")), 1, 0.6)
    raise ConfigError(f"--config={path}: no such file{f'; did you mean {near[0]!r}?' if near else ''}")
  if str(Path.cwd()) not in sys.path:
    sys.path.insert(0, str(Path.cwd()))  # so that a config file can start from another: `from configs import tiny`
  spec = importlib.util.spec_from_file_location(f"config_{Path(file).stem}", file)
  if spec is None or spec.loader is None:
    raise ConfigError(f"--config={path}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise ConfigError(f"--config={path}: has no function get_config(argument)")
    has_default = all(p.default is not p.empty for p in inspect.signature(module.get_config).parameters.values())
    found = module.get_config(*([argument] if argument or not has_default else []))
  except ValueError as error:  # the file's own words for an argument that it does not know
    raise ConfigError(f"{error}" if file in f"{error}" else f"--config={path}: {error}") from error
  except (
    SyntaxError,
    ImportError,
    NameError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    OSError,
  ) as error:
    raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error
  found = found.to_dict() if hasattr(found, "to_dict") else found
  if not isinstance(found, Mapping):
    raise ConfigError(f"--config={path}: get_config() must return a ConfigDict or a dict, got {found!r}")
  return dict(found)


def _override(values: dict[str, Any], kind: Any, path: list[str], value: Any, setting: str) -> None:
  """Sets a dotted name in the nested dicts of a Config, Mesh, Stream, or of streams and evaluators by name."""
  key, rest = path[0], path[1:]
  inner, setting = _below(kind, key, setting), f"{setting}.{key}"
  if Plug in (inner, *get_args(inner)):
    old = values.get(key, FIELDS[key].default if kind is Config else None)
    values[key] = _override_plug(old, rest, value, setting)
  elif not rest:
    values[key] = parse_text(value, inner)
  else:
    below = values.get(key) or {}
    if not isinstance(below, Mapping) or not (_item(inner) or dataclasses.is_dataclass(inner)):
      raise ConfigError(f"{setting}.{'.'.join(rest)}: {key!r} has no settings below it")
    values[key] = dict(below)
    _override(values[key], inner, rest, value, setting)


def _override_plug(old: Any, path: list[str], value: Any, setting: str) -> dict[str, Any] | None:
  """The plug-in as a dict with one option changed; or with another name, which drops the options of the old one."""
  old = dict(old) if isinstance(old, Mapping) else {} if old is None else parse_plug(setting, old).to_dict()
  if len(path) > 1:
    raise ConfigError(f"{setting}.{'.'.join(path)}: {path[0]!r} has no settings below it")
  value = parse_text(value)
  if path and path != ["name"]:
    return {**old, path[0]: value}
  if value is None and not path:
    return None
  new = parse_plug(setting, value).to_dict()
  return {**old, **new} if old.get("name") == new["name"] else new


def _has(values: Any, path: list[str]) -> bool:
  for key in path:
    if not isinstance(values, Mapping) or key not in values:
      return False
    values = values[key]
  return True


def _below(kind: Any, key: str, setting: str) -> Any:
  """The type of what a setting of this type holds under that key."""
  if not dataclasses.is_dataclass(kind):
    return _item(kind)
  fields = {field.name: field.type for field in dataclasses.fields(kind)}
  if key not in fields:
    below = [f"{other}.{key}" for other in kinds_with(key)] if kind is Config else []
    hint = f"; did you mean {' or '.join(map(repr, below))}?" if below else _nearest(key, fields)
    raise ConfigError(f"{setting}.{key}: unknown setting{hint}")
  return fields[key]


def _item(kind: Any) -> Any:
  """Stream for tuple[tuple[str, Stream], ...], the type of settings by name; None for other types."""
  pair = get_args((get_args(kind) or (None,))[0])
  return pair[1] if get_origin(kind) is tuple and pair else None


def _convert(setting: str, value: Any, kind: Any) -> Any:
  """The value as the field's type, which may hold settings of its own."""
  plain = next((k for k in get_args(kind) if k is Plug), kind)
  if plain is Plug:
    return None if value is None and plain is not kind else parse_plug(setting, value)
  if dataclasses.is_dataclass(kind):
    return _record(setting, value, kind)
  return _by_name(setting, value, _item(kind)) if _item(kind) else convert(setting, value, kind)


def _record(setting: str, value: Any, kind: Any) -> Any:
  if isinstance(value, kind):
    return value
  if not isinstance(value, Mapping):
    raise ConfigError(f"{setting}: expected settings by name, got {value!r}")
  found = {key: _convert(f"{setting}.{key}", item, _below(kind, str(key), setting)) for key, item in value.items()}
  for field in dataclasses.fields(kind):
    if field.default is dataclasses.MISSING and field.name not in found:
      raise ConfigError(f"{setting}.{field.name}: not set")
  return kind(**found)


def _by_name(setting: str, value: Any, kind: Any) -> tuple[tuple[str, Any], ...]:
  """Pairs in the order of their names, so that the order in a file means nothing."""
  if not isinstance(value, Mapping | None):
    raise ConfigError(f"{setting}: expected settings by name, got {value!r}")
  for key in value or ():
    if not isinstance(key, str) or not re.fullmatch(r"[\w-]+", key):
      raise ConfigError(f"{setting}: {key!r} is not a name of letters, digits, - and _")
  return tuple((key, _convert(f"{setting}.{key}", item, kind)) for key, item in sorted((value or {}).items()))


def _checked(cfg: Config) -> Config:
  """The config if every value is in range."""
  least = {"seq_len": 2, "seed": 0, "init_seed": 0, "data_seed": 0, "loss_chunk": 0, "z_loss": 0}
  least |= dict.fromkeys(("batch_size", "keep_checkpoints", "log_every", "tokens_per_device", "scan_unroll"), 1)
  least |= dict.fromkeys(("total_steps", "eval_every", "checkpoint_every", "cache_deadline"), 1)
  for name, bound in least.items():
    value = getattr(cfg, name)
    if isinstance(value, int | float) and value < bound:
      raise ConfigError(f"config.{name}={value}: must {f'be at least {bound}' if bound else 'not be negative'}")
  if not 0 <= cfg.label_smoothing < 1:
    raise ConfigError(f"config.label_smoothing={cfg.label_smoothing}: must be at least 0 and below 1")
  duration.steps(cfg.total_steps, "config.total_steps", batch_size=cfg.batch_size, seq_len=cfg.seq_len, examples_per_epoch=1)
  for name in ("eval_every", "checkpoint_every"):
    duration.steps(getattr(cfg, name), f"config.{name}", total_steps=1)
  for name, accepted in (("dtype", DTYPES), ("remat", REMAT), ("attention", ATTENTION)):
    if getattr(cfg, name) not in accepted:
      raise ConfigError(f"config.{name}={getattr(cfg, name)!r}: accepted are {', '.join(accepted)}")
  if isinstance(cfg.tokens_per_device, str) and cfg.tokens_per_device != "auto":
    raise ConfigError(f"config.tokens_per_device={cfg.tokens_per_device!r}: accepted are a number of tokens, 'auto' and none")
  buckets = cfg.length_buckets
  if buckets and (list(buckets) != sorted(set(buckets)) or buckets[-1] != cfg.seq_len or buckets[0] < 2):
    raise ConfigError(f"config.length_buckets={buckets}: must rise and end with config.seq_len={cfg.seq_len}")
  _check_streams(cfg)
  sizes = dataclasses.astuple(cfg.mesh)
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise ConfigError(f"config.mesh={sizes}: sizes are 1 or more, and one of them may be -1 (takes the rest)")
  return cfg


def _check_streams(cfg: Config) -> None:
  if cfg.streams and (cfg.task or cfg.data):
    raise ConfigError("config.streams: set together with config.task or config.data, which would have no effect")
  if not cfg.streams and (cfg.task is None or cfg.data is None):
    missing = " and ".join(f"config.{name}" for name in ("task", "data") if getattr(cfg, name) is None)
    raise ConfigError(f"{missing}: not set; a run needs task and data, or streams")
  if len(cfg.streams) > 1 and cfg.length_buckets:
    raise ConfigError(f"config.length_buckets={cfg.length_buckets}: rows of several streams share one length; leave it ()")
  weight_stages(cfg)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name, value in values.items():
    found |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
  return found


def _nearest(name: str, known: Iterable[str]) -> str:
  """What to write instead, for the end of an error: '; did you mean ...?' or '; there are ...'."""
  close = difflib.get_close_matches(name, list(known), 1, 0.5)
  return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
