"""The stopwatch: what this machine does in a second, as one line of JSON.

python -m tools.bench train --config=FILE[:ARG] [--config.NAME=VALUE ...]   the train step of a run, on its own batches
python -m tools.bench finetune ...     the same of a run that starts from a base, beside its peer
python -m tools.bench encode ...       vectors of the texts of its data
python -m tools.bench generate ...     what it writes behind its rows
python -m tools.bench checkpoint ...   its state, saved and restored
python -m tools.bench startup ...      until --help, until a wrong setting is named, until the first step
python -m tools.bench data [--data=...]                                     batches and tokenizers
python -m tools.bench accelerator [--to=FILE]                               this device at full sizes, minutes on one GPU

A peer (--peer=hf: torch, transformers and peft, in a process of its own, on the same weights and rows) takes turns with the
run; `ratio` is above 1 where the run is faster. Weights are those that the run starts with.
"""

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from lm import config, device
from lm.bench.data import DataBench, measure_data
from lm.config import parse_plug
from lm.files import local_path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")


def main() -> int:
  """Exit code: 0 measured, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  kinds = parser.add_subparsers(dest="what", required=True)
  _add_data(kinds.add_parser("data", help="batches and tokenizers"))
  accelerator = kinds.add_parser("accelerator", help="this device at full sizes; needs no data")
  accelerator.add_argument("--only", action="append", help="a case, where not all are wanted; may be given again")
  accelerator.add_argument("--to", type=local_path, help="file that gets the line too")
  for what, (words, peer, options) in RUNS.items():
    kind = kinds.add_parser(what, help=words)
    kind.add_argument("--config", required=True, help="as of lm.main; --config.NAME=VALUE overrides")
    kind.add_argument("--rounds", type=int, default=7, help="that are counted; one before them warms up")
    if peer:
      kind.add_argument("--peer", default=peer, choices=("none", "hf"), help="hf: torch, transformers and peft")
    for name, (default, meaning) in options.items():
      kind.add_argument(f"--{name}", type=type(default), default=default, help=meaning)
  args, rest = parser.parse_known_args()
  settings = vars(args)
  what = settings.pop("what")
  try:
    with contextlib.redirect_stdout(sys.stderr):  # what is said on the way is no figure
      found = {"data": _measure_data, "accelerator": _measure_accelerator}.get(what, _measure_run)(what, settings, rest)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  line = json.dumps({"what": what, **found, "versions": _versions()})
  print(line)
  if to := getattr(args, "to", None):
    to.write_text(line + "\n")
  return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
  default = DataBench()
  parser.add_argument("--data", default="pydocs", help="source, e.g. pydocs or 'text(path=\"a.txt\")'")
  parser.add_argument("--task", default="mlm", help="how its text becomes rows")
  parser.add_argument("--tokenizer", default="", help="as config.tokenizer; unset is the one that is trained")
  for name in ("vocab_size", "seq_len", "batch_size"):
    parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
  parser.add_argument("--seconds", type=float, default=default.seconds, help="for which batches are read")


def _measure_data(what: str, settings: dict, rest: list[str]) -> dict:
  _take_no_more(what, rest)
  source, task = (parse_plug(kind, settings.pop(kind)) for kind in ("data", "task"))
  return measure_data(DataBench(source, task, **settings))


def _measure_accelerator(what: str, settings: dict, rest: list[str]) -> dict:
  _take_no_more(what, rest)
  from lm.bench import accelerator
  from lm.main import set_up_process

  known = accelerator.CASES
  if unknown := [name for name in settings["only"] or () if name not in known]:
    raise ValueError(f"--only={unknown[0]}: unknown; accepted are {', '.join(known)}")
  if settings["to"] and not settings["to"].parent.is_dir():
    raise ValueError(f"--to={settings['to']}: its folder is not there")
  found = {"device": set_up_process()}
  return found | {"cases": accelerator.measure({name: known[name] for name in settings["only"] or known})}


def _take_no_more(what: str, rest: list[str]) -> None:
  if rest:
    raise ValueError(f"{rest[0]}: unknown; see python -m tools.bench {what} --help")


def _measure_run(what: str, settings: dict, rest: list[str]) -> dict:
  if bad := [flag for flag in rest if not flag.startswith("--config.") or "=" not in flag]:
    raise ValueError(f"{bad[0]}: expected --config.NAME=VALUE")
  path, with_peer = settings.pop("config"), settings.pop("peer", "none") == "hf"
  if low := [name for name, value in settings.items() if isinstance(value, int) and value < 1]:
    raise ValueError(f"--{low[0]}={settings[low[0]]}: must be at least 1")
  pairs = [flag.removeprefix("--config.").partition("=") for flag in rest]
  cfg = config.load(path, [(name, value) for name, _, value in pairs])
  said = {"config": path, "overrides": rest, **settings}
  if what == "startup":
    from lm.bench import startup

    return said | startup.measure(path, rest, **settings)
  from lm import build
  from lm.main import set_up_process

  said["device"] = set_up_process()
  if MEASURES[what] is _measure_step:
    import jax

    jax.config.update("jax_enable_compilation_cache", False)  # so that seconds of compilation are those of a compiler
  return said | MEASURES[what](build.make_run(cfg), with_peer, **settings)


def _measure_step(run: Any, with_peer: bool, rounds: int, steps: int) -> dict:
  from lm.bench import step

  return step.measure(run, rounds, steps, with_peer)


def _measure_encoding(run: Any, with_peer: bool, rounds: int, texts: int, batch_size: int) -> dict:
  from lm.bench import use

  return use.measure_encoding(run, rounds, texts, batch_size, with_peer)


def _measure_generation(run: Any, with_peer: bool, rounds: int, tokens: int, batch_size: int) -> dict:
  from lm.bench import use

  return use.measure_generation(run, rounds, tokens, batch_size, with_peer)


def _measure_checkpoint(run: Any, with_peer: bool, rounds: int, folder: str) -> dict:
  del with_peer
  from lm.bench import checkpoint

  if not Path(folder).is_dir():
    raise ValueError(f"--folder={folder}: is no folder")
  return checkpoint.measure(run, rounds, folder)


def _versions() -> dict[str, str]:
  found = {package: version for package in PACKAGES if (version := _version(package))}
  return {"python": platform.python_version(), **found}


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ""


STEPS = {"steps": (8, "optimizer steps in a round")}
# What is measured of a run: in words, the peer unless said otherwise ("" where there is none), options.
RUNS: dict[str, tuple[str, str, dict[str, tuple[int | str, str]]]] = {
  "train": ("the train step", "none", STEPS),
  "finetune": ("the train step of a run that starts from a base, beside its peer", "hf", STEPS),
  "encode": (
    "vectors of the texts of its data",
    "none",
    {"texts": (256, "in a round"), "batch_size": (32, "rows that are computed at a time")},
  ),
  "generate": (
    "what it writes behind the first half of its rows",
    "none",
    {"tokens": (64, "new ones behind each prompt"), "batch_size": (8, "prompts at a time")},
  ),
  "checkpoint": ("its state, saved and restored", "", {"folder": (".", "on the file system that is measured")}),
  "startup": ("until --help, until a wrong setting is named, until the first step", "", {}),
}
MEASURES: dict[str, Callable[..., dict]] = {
  "train": _measure_step,
  "finetune": _measure_step,
  "encode": _measure_encoding,
  "generate": _measure_generation,
  "checkpoint": _measure_checkpoint,
}

if __name__ == "__main__":
  device.restart_with_huge_pages()
  sys.exit(main())
