"""The config: every default once, overrides parsed and resolved against dataclass fields, durations turned into steps.

No jax here. A config file holds only what differs from the defaults; `load` adds overrides and checks everything that can
be checked without a device. Fields marked as execution may change when a run is resumed, all others are its identity.
"""

import ast
import dataclasses
import difflib
import importlib.util
import math
import re
import sys
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "dots", "block")


class ConfigError(ValueError):
  """Bad input, said in one line: the setting, its value, and what is accepted."""


@dataclasses.dataclass(frozen=True)
class Plug:
  """A plug-in by name with its options: dict(name="lora", rank=8)."""

  name: str
  options: tuple[tuple[str, Hashable], ...] = ()

  def to_dict(self) -> dict[str, Any]:
    """{"name": "lora", "rank": 8}"""
    return {"name": self.name, **dict(self.options)}


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices per mesh axis; -1 takes the rest."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Stream:
  """One task on one source; weight is its share of rows, relative to the other streams'."""

  task: Plug
  data: Plug
  weight: float = 1.0


def _setting(default: Any, help: str, execution: bool = False) -> Any:
  metadata = {"help": help, "kind": "execution" if execution else "identity"}
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
  """All settings of a run."""

  seed: int = _setting(0, "init_seed and data_seed follow it unless set")
  init_seed: int | None = _setting(None, "seed of random parameters")
  data_seed: int | None = _setting(None, "seed of order and corruption")
  total_steps: int | str = _setting(1000, "optimizer steps, or '3 epochs', '10M tokens', '50k examples'")
  batch_size: int = _setting(8, "rows per optimizer step over all devices")
  seq_len: int = _setting(256, "tokens per row")
  length_buckets: tuple[int, ...] = _setting((), "row lengths to pad to, the last is seq_len; () always pads to seq_len")
  max_device_tokens: int | None = _setting(None, "tokens one device takes at once; more is accumulated", execution=True)
  model: Plug | None = _setting(None, "preset with fields to change; unset takes that of init_from")
  task: Plug | None = _setting(None, "with data: the one stream of a run")
  data: Plug | None = _setting(None, "with task: the one stream of a run")
  streams: tuple[tuple[str, Stream], ...] = _setting((), "several streams by name, instead of task and data")
  peft: Plug = _setting(Plug("full"), "what trains and what is added")
  optimizer: Plug = _setting(Plug("adamw"), "update rule and schedule")
  mesh: Mesh = _setting(Mesh(), "devices per mesh axis", execution=True)
  tokenizer: str = _setting("", "SentencePiece .model file or 'bytes'; unset takes that of init_from")
  init_from: str = _setting("", "workdir whose parameters to start from")
  dtype: str = _setting("float32", "compute: float32 or bfloat16")
  remat: str = _setting("none", "what the backward pass recomputes: none, dots or block", execution=True)
  loss_chunk: int = _setting(0, "positions per chunk of head and cross-entropy; 0: whole rows", execution=True)
  evaluators: tuple[tuple[str, Plug], ...] = _setting((), "by name; none: those of the tasks", execution=True)
  eval_every: int | str = _setting("10%", "steps, or a share of total_steps", execution=True)
  checkpoint_every: int | str = _setting("20%", "steps, or a share of total_steps", execution=True)
  keep_checkpoints: int = _setting(2, "newest checkpoints kept", execution=True)
  log_every: int = _setting(10, "steps per line of metrics.jsonl", execution=True)
  cache_dir: str = _setting("", "tokenised data; unset is ~/.cache/lm", execution=True)

  @property
  def all_streams(self) -> dict[str, Stream]:
    """Streams by name; a run of one task and data has one, named after the task."""
    if self.streams:
      return dict(self.streams)
    assert self.task is not None and self.data is not None
    return {self.task.name: Stream(self.task, self.data)}


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
PLUGS = ("model", "task", "data", "peft", "optimizer")


def load(path: str, overrides: dict[str, Any] | list[tuple[str, Any]] | None = None) -> Config:
  """The config of a file 'configs/x.py' or 'configs/x.py:argument', with overrides by dotted name.

  >>> load("configs/tiny.py", {"optimizer.learning_rate": 3e-4, "peft": "lora(rank=16)"})  # doctest: +SKIP
  """
  values = _run_file(path)
  for name, value in overrides.items() if isinstance(overrides, dict) else overrides or ():
    _override(values, name.split("."), _parse(value), name)
  return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> Config:
  """A checked Config from plain dicts, as config files and config.json hold them."""
  found: dict[str, Any] = {}
  for name, value in values.items():
    if name not in FIELDS:
      raise ConfigError(f"config.{name}: unknown setting{_nearest(name, FIELDS)}")
    found[name] = _convert(name, value)
  return _checked(Config(**found))


def to_dict(cfg: Config) -> dict[str, Any]:
  """Plain JSON values; from_dict(to_dict(cfg)) == cfg."""

  def plain(value):
    if isinstance(value, Plug):
      return {name: plain(option) for name, option in value.to_dict().items()}
    if isinstance(value, Mesh | Stream):
      return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value

  found = {name: plain(getattr(cfg, name)) for name in FIELDS}
  for name in ("streams", "evaluators"):
    found[name] = {key: plain(value) for key, value in getattr(cfg, name)}
  return found


def changes(old: Config, new: Config) -> list[tuple[str, Any, Any, str]]:
  """(dotted name, old value, new value, "identity" or "execution") of every setting that differs."""
  before, after = _flatten(to_dict(old)), _flatten(to_dict(new))
  names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
  kind = lambda name: FIELDS[name.split(".")[0]].metadata["kind"]
  return [(name, before.get(name), after.get(name), kind(name)) for name in names]


def steps(
  value: int | str,
  setting: str,
  *,
  total_steps: int | None = None,
  batch_size: int | None = None,
  seq_len: int | None = None,
  examples_per_epoch: int | None = None,
) -> int:
  """A duration in optimizer steps, at least 1: 500, "2%" of total_steps, "3 epochs", "10M tokens", "50k examples"."""
  if isinstance(value, int):
    return max(value, 1)
  match = re.fullmatch(r"\s*([\d_.]+(?:e\d+)?)\s*([kMB]?)\s*(%|epochs?|tokens|examples|steps)\s*", value)
  if not match:
    raise ConfigError(f"{setting}={value!r}: expected steps, or a number with %, epochs, tokens, examples or steps")
  number = float(match[1].replace("_", "")) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]
  per_step = {
    "%": total_steps and 100 / total_steps,
    "epoch": batch_size and examples_per_epoch and batch_size / examples_per_epoch,
    "token": batch_size and seq_len and batch_size * seq_len,
    "example": batch_size,
    "step": 1,
  }[match[3].rstrip("s")]
  if per_step is None:
    raise ConfigError(f"{setting}={value!r}: this duration cannot be given in {match[3]}")
  return max(math.ceil(number / per_step - 1e-9), 1)


def parse_args(argv: Iterable[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
  """(flags, config overrides) of --config=FILE --workdir=DIR --config.a.b=value --help."""
  options: dict[str, str] = {}
  overrides: list[tuple[str, str]] = []
  arguments = list(argv)
  while arguments:
    argument = arguments.pop(0)
    flag, equals, value = argument.partition("=")
    if flag == "--help":
      options["help"] = "true"
      continue
    if flag not in ("--config", "--workdir") and not flag.startswith("--config."):
      raise ConfigError(f"{argument}: unknown flag{_nearest(flag, ('--config', '--workdir', '--help'))}")
    if not equals:
      if not arguments or arguments[0].startswith("--"):
        raise ConfigError(f"{flag}: needs a value, {flag}=...")
      value = arguments.pop(0)
    if flag.startswith("--config."):
      overrides.append((flag.removeprefix("--config."), value))
    else:
      options[flag.removeprefix("--")] = value
  return options, overrides


def _run_file(path: str) -> dict[str, Any]:
  file, _, argument = path.partition(":")
  if not Path(file).is_file():
    raise ConfigError(f"--config={path}: no such file")
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
    found = module.get_config(argument)
  except (SyntaxError, ImportError, NameError, TypeError, AttributeError, KeyError) as error:
    raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error
  return found.to_dict() if hasattr(found, "to_dict") else dict(found)


def _override(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
  """Sets a dotted name in nested dicts; a plug-in's new name drops the options of the old one."""
  head, rest = path[0], path[1:]
  if not rest:
    old = values.get(head)
    if isinstance(value, Plug) and isinstance(old, Mapping) and old.get("name") == value.name:
      value = {**old, **value.to_dict()}
    elif head == "name" and value != values.get("name"):
      values.clear()
    values[head] = value.to_dict() if isinstance(value, Plug) else value
    return
  below = values.get(head)
  if isinstance(below, str | Plug):
    below = parse_plug(name, below).to_dict()
  if below is None and head in FIELDS and isinstance(FIELDS[head].default, Plug):
    below = getattr(Config(), head).to_dict()
  if below is not None and not isinstance(below, Mapping):
    raise ConfigError(f"config.{name}: {head!r} has no settings below it")
  values[head] = dict(below or {})
  _override(values[head], rest, value, name)


def _parse(value: Any) -> Any:
  """Text of a command line as a value: Python literals, true/false/none, 'lora(rank=8)', else a string."""
  if not isinstance(value, str):
    return value
  words = {"true": True, "false": False, "none": None}
  if value.strip().lower() in words:
    return words[value.strip().lower()]
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    pass
  call = re.fullmatch(r"\w[\w-]*\(.*\)", value.strip(), re.DOTALL)
  return _call(value) if call else value


def _call(text: str) -> Plug:
  """'lora(rank=8)' -> Plug("lora", (("rank", 8),))."""
  name, _, arguments = text.strip().partition("(")
  try:
    call = ast.parse(f"f({arguments}", mode="eval").body
    assert isinstance(call, ast.Call)
    if call.args or any(keyword.arg is None for keyword in call.keywords):
      raise ValueError("options are given as name=value")
    options = [(str(k.arg), _value_of(k.value)) for k in call.keywords]
  except (ValueError, SyntaxError, AssertionError) as error:
    raise ConfigError(f"{text!r}: expected name or name(option=value, ...); {error}") from error
  return Plug(name, tuple((key, _hashable(option)) for key, option in options))


def _value_of(node: ast.expr) -> Any:
  return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def parse_plug(name: str, value: Any) -> Plug:
  """A plug-in from a name, "name(option=value)" or a dict with "name"; `name` is the setting, for the error."""
  if isinstance(value, Plug):
    return value
  if isinstance(value, str):
    return _call(value) if "(" in value else Plug(value)
  if isinstance(value, Mapping) and isinstance(value.get("name"), str):
    return Plug(value["name"], tuple((k, _hashable(v)) for k, v in value.items() if k != "name"))
  raise ConfigError(f"config.{name}: expected a name, name(option=value) or a dict with 'name', got {value!r}")


def _hashable(value: Any) -> Hashable:
  if isinstance(value, list | tuple):
    return tuple(_hashable(item) for item in value)
  if isinstance(value, Mapping):
    raise ConfigError(f"{value!r}: a plug-in's option cannot be a dict")
  return value


def _convert(name: str, value: Any) -> Any:
  if name in PLUGS:
    return None if value is None else parse_plug(name, value)
  if name == "mesh":
    return _record(Mesh, name, value)
  if name == "streams":
    return tuple((key, _stream(f"streams.{key}", stream)) for key, stream in dict(value or {}).items())
  if name == "evaluators":
    return tuple((key, parse_plug(f"evaluators.{key}", plug)) for key, plug in dict(value or {}).items())
  return _scalar(f"config.{name}", value, FIELDS[name].type)


def _stream(name: str, value: Any) -> Stream:
  if isinstance(value, Mapping) and {"task", "data"} <= value.keys():
    plugs = {key: parse_plug(f"{name}.{key}", value[key]) for key in ("task", "data")}
    return _record(Stream, name, {**value, **plugs})
  raise ConfigError(f"config.{name}: expected task, data and weight, got {value!r}")


def _record(kind: Any, name: str, value: Any) -> Any:
  if not isinstance(value, Mapping):
    raise ConfigError(f"config.{name}: expected settings, got {value!r}")
  fields = {field.name: field for field in dataclasses.fields(kind)}
  for key in value:
    if key not in fields:
      raise ConfigError(f"config.{name}.{key}: unknown setting{_nearest(key, fields)}")
  typed = {k: v if isinstance(v, Plug) else _scalar(f"config.{name}.{k}", v, fields[k].type) for k, v in value.items()}
  return kind(**typed)


def _scalar(setting: str, value: Any, kind: Any) -> Any:
  """The value as the field's type, or an error; 1e5 is an integer, 3 a float, [1, 2] a tuple."""
  accepted = getattr(kind, "__args__", None) if not hasattr(kind, "__origin__") else None
  kinds = accepted or (kind,)
  if value is None and type(None) in kinds:
    return None
  if hasattr(kind, "__origin__"):
    items = (value,) if isinstance(value, int) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, int) for item in items):
      raise ConfigError(f"{setting}: expected integers like 128,256, got {value!r}")
    return tuple(items)
  if not isinstance(value, bool):
    if int in kinds and isinstance(value, float) and value.is_integer():
      value = int(value)
    if float in kinds and isinstance(value, int):
      value = float(value)
    if any(isinstance(value, k) for k in kinds):
      return value
  words = {int: "an integer", float: "a number", str: "text", type(None): "none"}
  raise ConfigError(f"{setting}: expected {' or '.join(words[k] for k in kinds)}, got {value!r}")


def _checked(cfg: Config) -> Config:
  """The config if every value is in range."""
  for name in ("batch_size", "keep_checkpoints", "log_every", "max_device_tokens"):
    value = getattr(cfg, name)
    if value is not None and value < 1:
      raise ConfigError(f"config.{name}={value}: must be at least 1")
  for name in ("total_steps", "eval_every", "checkpoint_every"):
    value = getattr(cfg, name)
    if isinstance(value, int) and value < 1:
      raise ConfigError(f"config.{name}={value}: must be at least 1")
    steps(value, f"config.{name}", total_steps=1000, batch_size=1, seq_len=1, examples_per_epoch=1)
  if cfg.seq_len < 2:
    raise ConfigError(f"config.seq_len={cfg.seq_len}: must be at least 2")
  for name in ("seed", "init_seed", "data_seed", "loss_chunk"):
    if (getattr(cfg, name) or 0) < 0:
      raise ConfigError(f"config.{name}={getattr(cfg, name)}: must not be negative")
  buckets = cfg.length_buckets
  if buckets and (list(buckets) != sorted(set(buckets)) or buckets[-1] != cfg.seq_len or buckets[0] < 2):
    raise ConfigError(f"config.length_buckets={buckets}: must rise and end with config.seq_len={cfg.seq_len}")
  for name, accepted in (("dtype", DTYPES), ("remat", REMAT)):
    if getattr(cfg, name) not in accepted:
      raise ConfigError(f"config.{name}={getattr(cfg, name)!r}: accepted are {', '.join(accepted)}")
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
  for name, stream in cfg.streams:
    if not stream.weight > 0:
      raise ConfigError(f"config.streams.{name}.weight={stream.weight}: must be above 0")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  found: dict[str, Any] = {}
  for name, value in values.items():
    found |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
  return found


def _nearest(name: str, known: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, list(known), 1, 0.5)
  return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
