"""What a config means and what can be put in it: every setting with its default, origin and meaning, and all plug-ins.

Meanings are the comments behind the fields, first lines of docstrings the words about a plug-in: nothing is said twice.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lm import duration, plug
from lm.command import KINDS
from lm.config import Config, Mesh, Plug, Stream
from lm.report import Table

# Kind of plug-in by what --list calls it. A setting that holds one is called as its kind.
LISTED = {
  "tasks": "task",
  "models": "model",
  "peft": "peft",
  "quantizers": "quantizer",
  "sources": "data",
  "filters": "filter",
  "optimizers": "optimizer",
  "regularizers": "regularizer",
  "evaluators": "evaluator",
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """One line of `settings`; name is dotted."""

  name: str
  value: Any
  default: Any
  comment: str

  def cells(self, origin: str) -> list[str]:
    """Name, value, default, unit, origin, meaning."""
    unit, _, meaning = self.comment[1:].partition("] ") if self.comment.startswith("[") else ("", "", self.comment)
    return [self.name, _text(self.value), _text(self.default), unit, origin, meaning]


def settings(cfg: Config, in_file: Collection[str], in_flags: Collection[str]) -> Table:
  """Every setting of a config, also those of its plug-ins.

  Args:
    in_file, in_flags: dotted names that the file and the flags set (`config.origins`).
  """
  holds = lambda names, name: any(f"{name}.".startswith(f"{other}.") or other == f"{name}.name" for other in names)
  origin = lambda name: "flag" if holds(in_flags, name) else "file" if holds(in_file, name) else "default"
  rows = [setting.cells(origin(setting.name)) for setting in _walk("", cfg, Config(), plug.comments(Config))]
  return Table("", ["setting", "value", "default", "unit", "set by", "meaning"], rows, justify="left")


def _walk(prefix: str, record: Any, defaults: Any, comments: dict[str, str]) -> Iterator[Setting]:
  """The fields of a Config, Mesh or Stream."""
  for field in dataclasses.fields(record):
    name, value = f"{prefix}{field.name}", getattr(record, field.name)
    default, comment = getattr(defaults, field.name, None), comments.get(field.name, "")
    if isinstance(value, Plug):
      yield from _plug(field.name, name, value, default, comment)
    elif isinstance(value, Mesh):
      yield from _walk(f"{name}.", value, default, plug.comments(Mesh))
    elif value and field.name in ("streams", "evaluators"):
      for key, item in value:
        if isinstance(item, Stream):
          yield from _walk(f"{name}.{key}.", item, None, plug.comments(Stream))
        else:
          yield from _plug("evaluator", f"{name}.{key}", item, None, comment)
    else:
      yield Setting(name, value, default, comment)


def _plug(kind: str, name: str, value: Plug, default: Any, comment: str) -> Iterator[Setting]:
  yield Setting(name, value.name, default.name if isinstance(default, Plug) else default, comment)
  options = dict(value.options)
  for option, (preset, words) in _options(kind, value.name).items():
    yield Setting(f"{name}.{option}", options.get(option, preset), preset, words)


def _options(kind: str, name: str) -> dict[str, tuple[Any, str]]:
  """(default, comment) of each option of a plug-in; a model's defaults are its preset's."""
  cls = plug.find(kind, name)
  words = plug.comments(cls)
  default = lambda field: getattr(plug.preset(name), field.name) if kind == "model" else _default(field)
  return {option: (default(field), words.get(option, "")) for option, field in plug.fields(kind, name).items()}


def _default(field: dataclasses.Field) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return "must be set" if field.default is dataclasses.MISSING else field.default


def facts(cfg: Config) -> str:
  """Parameter counts, steps and rows that follow from a config: the run is built on one CPU, and nothing is computed.

  Raises:
    ValueError: as `build.make_run`.
  """
  import jax

  from lm import build

  run = build.make_run(dataclasses.replace(cfg, mesh=Mesh(data=1)), jax.devices()[:1])
  params, total = run.program.num_params, run.total_steps
  every = lambda name: duration.steps(getattr(cfg, name), f"config.{name}", total_steps=total)
  return "\n".join(
    [
      f"parameters: {params['total']:,}, trainable {params['trainable']:,}",
      f"steps: {total:,} of {cfg.batch_size} rows, {cfg.batch_size * cfg.seq_len:,} tokens; one epoch is"
      f" {-(-run.loader.rows_per_epoch // cfg.batch_size):,} steps",
      f"every {every('eval_every'):,} steps an evaluation, every {every('checkpoint_every'):,} a checkpoint",
      run.loader.report(),
    ]
  )


def listing(kind: str = "") -> str:
  """Names, first lines of docstrings, and arguments of everything of a kind (one of KINDS), or of all kinds."""
  parts = []
  for each in [kind] if kind else KINDS:
    entries = _configs() if each == "configs" else _plugins(LISTED[each])
    parts.append("\n".join([f"{each}:", *(f"  {line}" for line in entries)]))
  return "\n\n".join(parts)


def _configs() -> list[str]:
  """Runnable files below configs/ and experiments/ of the working directory."""
  files = sorted([*Path("configs").glob("*.py"), *Path("experiments").glob("*/*.py")])
  return [f"{file}  {_first_line(file.read_text())}" for file in files if "def get_config(" in file.read_text()]


def _first_line(source: str) -> str:
  return re.sub(r'^\s*"""', "", source).splitlines()[0].removesuffix('"""')


def _plugins(kind: str) -> list[str]:
  lines = []
  for name in plug.names(kind):
    lines.append(f"{name}  {_sizes(name) if kind == 'model' else plug.describe(kind, name)}")
    if kind != "model":
      lines += [f"    {option}={_text(default)}  {words}" for option, (default, words) in _options(kind, name).items()]
  if kind == "model":
    lines.append("arguments of each, with the values of the last one:")
    lines += [f"    {option}={_text(default)}  {words}" for option, (default, words) in _options(kind, name).items()]
  return lines


def _sizes(name: str) -> str:
  cfg, family = plug.preset(name), plug.describe("model", name).partition(":")[0]
  return f"{family}: {cfg.num_layers} layers of {cfg.model_dim}, {cfg.num_heads} heads, up to {cfg.max_len:,} tokens"


def _text(value: Any) -> str:
  """As it is typed on a command line: nothing for unset, a,b for a tuple."""
  if value is None:
    return "none"
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
