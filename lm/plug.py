"""Plug-ins by name: dict(name="lora", rank=8) -> lm/peft/lora.py:Lora(rank=8). No registry: the file is the registration.

An unknown name or option is an error that lists what exists. Presets of models are found the same way, as values.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm.config import ConfigError, Plug

PACKAGES = {
  "task": "lm.tasks",
  "peft": "lm.peft",
  "data": "lm.data.sources",
  "evaluator": "lm.evals",
}
PRESETS = "lm.models.presets"
# Files beside the plug-ins that hold their contract or serve them.
NOT_PLUGINS = {"__init__", "task", "objective", "cross_entropy", "peft", "evaluator", "source"}


def names(kind: str) -> list[str]:
  """What exists of a kind: task, peft, data, evaluator, optimizer or model."""
  if kind == "model":
    return list(_presets())
  if kind == "optimizer":
    return list(_optimizers())
  return [name for name in _modules(PACKAGES[kind]) if name not in NOT_PLUGINS]


def find(kind: str, name: str) -> type:
  """The class of a plug-in; its name is the file's in CamelCase (span_qa.py -> SpanQa)."""
  known = names(kind)
  if name not in known:
    raise ConfigError(f"{kind} {name!r}: unknown{_nearest(name, known)}")
  if kind == "optimizer":
    return _optimizers()[name]
  module = importlib.import_module(f"{PACKAGES[kind]}.{name}")
  return getattr(module, "".join(part.capitalize() for part in name.split("_")))


def make(kind: str, plug: Plug, **extra: Any) -> Any:
  """The plug-in as an instance; `extra` are arguments that the caller gives (a run, a split) unless the options do.

  Raises:
    ConfigError: unknown name or option, or an option of the wrong type.
  """
  options = dict(plug.options)
  if kind == "model":
    presets = _presets()
    if plug.name not in presets:
      raise ConfigError(f"model {plug.name!r}: unknown{_nearest(plug.name, presets)}")
    preset = presets[plug.name]
    return dataclasses.replace(preset, **_checked(kind, plug.name, type(preset), options))
  cls = find(kind, plug.name)
  return cls(**{**extra, **_checked(kind, plug.name, cls, options)})


def _checked(kind: str, name: str, cls: Any, options: dict[str, Any]) -> dict[str, Any]:
  fields = {field.name: field for field in dataclasses.fields(cls) if field.init and field.name != "run"}
  found = {}
  for option, value in options.items():
    if option not in fields:
      raise ConfigError(f"{kind} {name!r} has no option {option!r}{_nearest(option, fields)}")
    kinds: tuple[Any, ...] = getattr(fields[option].type, "__args__", None) or (fields[option].type,)
    if origin := getattr(fields[option].type, "__origin__", None):
      kinds = (origin,)
    if isinstance(value, float) and int in kinds and float not in kinds and value.is_integer():
      value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
      value = float(value)
    if isinstance(value, str) and tuple in kinds:
      value = (value,)
    wrong_bool = isinstance(value, bool) and bool not in kinds
    if wrong_bool or not any(isinstance(value, k) for k in kinds):
      words = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
      raise ConfigError(f"{kind} {name!r}: option {option}={value!r}: expected {words}")
    found[option] = value
  return found


def _modules(package: str) -> list[str]:
  folder = Path(importlib.import_module(package).__path__[0])
  return sorted(path.stem for path in folder.glob("*.py"))


def _presets() -> dict[str, Any]:
  families = [name for name in _modules(PRESETS) if name != "__init__"]
  return {k: v for family in families for k, v in importlib.import_module(f"{PRESETS}.{family}").PRESETS.items()}


def _optimizers() -> dict[str, type]:
  module = importlib.import_module("lm.optim")
  return {cls.__name__.lower(): cls for cls in module.Optimizer.__subclasses__()}


def _nearest(name: str, known: Iterable[str]) -> str:
  known = list(known)
  close = difflib.get_close_matches(name, known, 1, 0.5)
  return (f"; did you mean {close[0]!r}?" if close else ";") + f" there are {', '.join(known) or 'none'}"
