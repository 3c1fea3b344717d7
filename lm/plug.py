"""Plug-ins: "lora(rank=8)" or dict(name="lora", rank=8) -> lm/peft/lora.py:Lora(rank=8). The file is the registration.

A plug-in in a config is a value, `Plug`, that is read without importing the class it names; `make` finds the class and
checks the options against its fields. Unknown names and options are errors that list what exists.
"""

import ast
import dataclasses
import difflib
import importlib
import inspect
import io
import re
import tokenize
import types
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

PACKAGES = {
  "task": "lm.tasks",
  "peft": "lm.peft",
  "quantizer": "lm.quantizers",
  "optimizer": "lm.optim",
  "regularizer": "lm.regularizers",
  "data": "lm.data.sources",
  "filter": "lm.data.filters",
  "evaluator": "lm.evals",
}
PRESETS = "lm.models.presets"
# Fields that the caller gives, so that a config cannot: every source is read for several splits.
CALLERS = {"data": ("split",), "evaluator": ("run", "name")}
# Files beside the plug-ins that hold their contract or serve them.
CONTRACTS = {"task", "peft", "quantizer", "optimizer", "regularizer", "evaluator", "source", "filter"}
NOT_PLUGINS = CONTRACTS | {
  "__init__", "text_rows", "average", "objective", "forward", "cross_entropy", "contrast", "readout", "tagged", "windowed",
  "harness",
}  # fmt: skip
# Short forms: the plug-in that a prefix stands for, and the options that follow it, parted by colons.
SHORT = {"tfds": ("tfds", ("dataset",)), "hf": ("hub", ("repo", "config"))}
WORDS = {int: "an integer", float: "a number", str: "text", bool: "true or false", types.NoneType: "none"}


class ConfigError(ValueError):
  """Bad input, said in one line: the setting, its value, and what is accepted."""


@dataclasses.dataclass(frozen=True)
class Plug:
  """A plug-in by name with its options, in any order: dict(name="lora", rank=8). `lm.plug` checks them."""

  name: str
  options: tuple[tuple[str, Hashable], ...] = ()

  def __post_init__(self):
    object.__setattr__(self, "options", tuple(sorted(self.options, key=lambda option: option[0])))

  def to_dict(self) -> dict[str, Any]:
    """{"name": "lora", "rank": 8}"""
    return {"name": self.name, **dict(self.options)}


def names(kind: str) -> list[str]:
  """What exists of a kind: those of PACKAGES, or model. Imports none that has its own file."""
  if kind == "model":
    return list(_presets())
  return [name for name in _modules(PACKAGES[kind]) if name not in NOT_PLUGINS]


def find(kind: str, name: str) -> type:
  """The class of a plug-in; its name is the file's in CamelCase (span_qa.py -> SpanQa)."""
  if name not in names(kind):
    raise _unknown(kind, name)
  if kind == "model":
    return type(preset(name))
  return getattr(_module(kind, name), "".join(part.capitalize() for part in name.split("_")))


def preset(name: str) -> Any:
  """The value of a model preset, by its name."""
  return _presets()[name][0]


def describe(kind: str, name: str) -> str:
  """The first line of the docstring of a plug-in's file."""
  about = _presets()[name][1] if kind == "model" else _module(kind, name)
  return (inspect.getdoc(about) or "").split("\n")[0]


def make(kind: str, plug: Plug, **extra: Any) -> Any:
  """The plug-in as an instance; `extra` are the arguments that the caller gives (CALLERS).

  Raises:
    ConfigError: unknown name or option, an option of the wrong type, or one that must be set and is not.
  """
  cls: Any = find(kind, plug.name)
  if kind == "model":
    return dataclasses.replace(preset(plug.name), **_options(kind, plug, cls))
  arguments = {**extra, **_options(kind, plug, cls)}
  for field in dataclasses.fields(cls):
    required = field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if required and field.name not in arguments:
      raise ConfigError(f"{kind} {plug.name!r}: {field.name} is not set")
  return cls(**arguments)


def fields(kind: str, name: str) -> dict[str, dataclasses.Field]:
  """What can be set of a plug-in, by option."""
  cls: Any = find(kind, name)
  return {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in CALLERS.get(kind, ())}


def kinds_with(option: str) -> list[str]:
  """Kinds whose plug-ins declare an option: "rank" -> ["peft"]. Their files are read and not imported, which takes no time."""
  root = Path(__file__).parent
  files = {"model": [root / "models" / "transformer_config.py"]}
  folder = lambda kind: root.parent.joinpath(*PACKAGES[kind].split("."))
  files |= {
    kind: [folder(kind) / f"{name}.py" for name in names(kind)]
    for kind in ("peft", "task", "data", "quantizer", "optimizer", "regularizer")
  }
  for kind in ("quantizer", "optimizer"):
    files[kind].append(folder(kind) / f"{kind}.py")  # most of their options are of all of them
  declares = lambda path: re.search(rf"^  {re.escape(option)}: \w", path.read_text(), re.MULTILINE)
  return [kind for kind, paths in files.items() if option not in CALLERS.get(kind, ()) and any(map(declares, paths))]


def comments(cls: Any) -> dict[str, str]:
  """The comment behind each field of a dataclass and of its bases: what the setting means, its unit first in brackets.

  `seq_len: int = 256  # [tokens] per row` gives {"seq_len": "[tokens] per row"}.
  """
  known, found = {field.name for field in dataclasses.fields(cls)}, {}
  for base in reversed(cls.__mro__[:-1]):
    lines = inspect.getsource(base)
    tokens = tokenize.generate_tokens(io.StringIO(lines).readline)
    for token in tokens:
      field = re.match(r" *(\w+) *:", token.line)
      if token.type == tokenize.COMMENT and field and field[1] in known:
        found[field[1]] = token.string.lstrip("# ")
  return found


def parse_plug(setting: str, value: Any) -> Plug:
  """A plug-in from "lora", "lora(rank=8, targets=.*query)", "tfds:glue/sst2" (SHORT) or a dict with "name".

  Raises:
    ConfigError: names the setting.
  """
  if isinstance(value, Plug):
    return value
  if isinstance(value, str):
    value = _call(setting, value)
  if not isinstance(value, Mapping):
    raise ConfigError(f"{setting}: expected a name, name(option=value) or a dict with 'name', got {value!r}")
  name = value.get("name")
  if not isinstance(name, str) or not name:
    raise ConfigError(f"{setting}: its name is not set; expected a name, name(option=value) or a dict with 'name'")
  for key in value:
    if not isinstance(key, str) or not key.isidentifier():
      raise ConfigError(f"{setting}: {key!r} is not the name of an option")
  return Plug(name, tuple((key, _option(f"{setting}.{key}", option)) for key, option in value.items() if key != "name"))


def parse_text(text: Any, kind: Any = None) -> Any:
  """Text of a command line as a value: a Python literal, true, false, none, else the text itself, as for text settings."""
  if not isinstance(text, str):
    return text
  words = {"true": True, "false": False, "none": None}
  try:
    value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, RecursionError):
    return text
  return text if kind is str and not isinstance(value, str) else value


def convert(setting: str, value: Any, kind: Any) -> Any:
  """The value as a field's type: 1e5 is an integer, 3 a number, a list a tuple, "a,b" a tuple of texts.

  Raises:
    ConfigError: names the setting, what is expected, and the value.
  """
  kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
  if value is None and types.NoneType in kinds:
    return None
  tuples = [k for k in kinds if tuple in (k, get_origin(k))]
  kinds = tuple(k for k in kinds if k not in tuples)
  if tuples and (isinstance(value, list | tuple) or not set(kinds) - {types.NoneType}):
    return _tuple(setting, value, get_args(tuples[0]))
  assert all(k in WORDS for k in kinds), f"{setting}: a field of type {kind} cannot be set"
  if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
    value = int(value)
  if type(value) is int and float in kinds and int not in kinds:
    value = float(value)
  if bool in kinds if isinstance(value, bool) else isinstance(value, kinds):
    return value
  hint = f"; as text it is written \"'{value}'\"" if kinds == (str,) and not isinstance(value, list | tuple) else ""
  expected = " or ".join([WORDS[k] for k in kinds] + ["a list"] * len(tuples))
  raise ConfigError(f"{setting}: expected {expected}, got {value!r}{hint}")


def _options(kind: str, plug: Plug, cls: Any) -> dict[str, Any]:
  """The options with the types of the class's fields."""
  hints = get_type_hints(cls)
  known = {name: hints[name] for name in fields(kind, plug.name)}
  for option in dict(plug.options):
    if option not in known:
      raise ConfigError(f"{kind} {plug.name!r} has no option {option!r}; {_choices(option, known, 'it has')}")
  return {option: convert(f"{kind} {plug.name!r}: {option}", value, known[option]) for option, value in plug.options}


def _unknown(kind: str, name: str) -> ConfigError:
  return ConfigError(f"{kind} {name!r}: unknown; {_choices(name, names(kind), 'there are')}")


def _choices(name: str, known: Iterable[str], verb: str) -> str:
  """What to write instead: "did you mean 'lora'? There are: full, head, lora", or only the list if nothing is near."""
  every = f"{verb}: {', '.join(known) or 'none'}"
  close = difflib.get_close_matches(name, list(known), 1, 0.5)
  return f"did you mean {close[0]!r}? {every[0].upper()}{every[1:]}" if close else every


def _modules(package: str) -> list[str]:
  folder = Path(importlib.import_module(package).__path__[0])
  return sorted(path.stem for path in folder.glob("*.py"))


def _module(kind: str, name: str) -> types.ModuleType:
  return importlib.import_module(f"{PACKAGES[kind]}.{name}")


def _presets() -> dict[str, tuple[Any, types.ModuleType]]:
  """(value, its family's file) by the preset's name."""
  families = [importlib.import_module(f"{PRESETS}.{name}") for name in _modules(PRESETS) if name != "__init__"]
  return {name: (value, family) for family in families for name, value in family.PRESETS.items()}


def _call(setting: str, text: str) -> dict[str, Any]:
  """'lora(rank=8, targets=.*query)' -> {"name": "lora", "rank": 8, "targets": ".*query"}."""
  match = re.fullmatch(r"\s*([\w.-]+)(?::([^()]*))?\s*(?:\((.*)\))?\s*", text, re.DOTALL)
  parts = _split(match[3] or "") if match else None
  if match is None or parts is None:
    raise ConfigError(f"{setting}: expected name or name(option=value, ...), got {text!r}")
  found: dict[str, Any] = {"name": match[1]}
  if match[2] is not None:
    if match[1] not in SHORT:
      raise ConfigError(f"{setting}={text!r}: {match[1]!r} has no short form; those that have: {', '.join(SHORT)}")
    found["name"], options = SHORT[match[1]]
    found |= zip(options, match[2].strip().split(":", len(options) - 1), strict=False)
  for part in parts:
    key, equals, value = (piece.strip() for piece in part.partition("="))
    if not equals or not value or key in found:
      raise ConfigError(f"{setting}: expected options as name=value, each once, got {part.strip()!r} in {text!r}")
    found[key] = parse_text(value)
  return found


def _split(text: str) -> list[str] | None:
  """At commas outside of quotes and brackets: "a=1, b=(2, 3)" -> ["a=1", " b=(2, 3)"]; None if one is not closed."""
  parts, depth, quote = [""], 0, ""
  for char in text:
    if char == "," and not depth and not quote:
      parts.append("")
      continue
    parts[-1] += char
    if quote:
      quote = "" if char == quote else quote
    elif char in "'\"":
      quote = char
    else:
      depth += (char in "([{") - (char in ")]}")
    if depth < 0:
      return None
  return None if depth or quote else [part for part in parts if part.strip()]


def _option(setting: str, value: Any) -> Hashable:
  if isinstance(value, list | tuple):
    return tuple(_option(setting, item) for item in value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise ConfigError(f"{setting}: expected a number, text, true, false, none or a list of them, got {value!r}")


def _tuple(setting: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
  """kinds: the arguments of the tuple type, (int, ...) or (int, float) or () for anything."""
  if isinstance(value, str):
    value = [parse_text(part.strip(), kinds[0] if kinds else None) for part in _split(value) or [value]]
  items = tuple(value) if isinstance(value, list | tuple) else (value,)
  if not kinds:
    return items
  each = kinds[:1] * len(items) if ... in kinds else kinds
  if len(each) != len(items):
    raise ConfigError(f"{setting}: expected {len(each)} values, got {value!r}")
  return tuple(convert(setting, item, kind) for item, kind in zip(items, each, strict=True))
