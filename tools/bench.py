"""What this machine does in a second, as one line of JSON.

python -m tools.bench data [--data=...]                                        the data wing: batches, tokenizers
python -m tools.bench train --config=FILE[:ARG] [--config.NAME=VALUE ...]      the train step of a run, on its own batches
python -m tools.bench finetune --config=FILE[:ARG] [--config.NAME=VALUE ...]   the same of a run with a base, beside its peer

A peer (--peer=hf: torch, transformers and peft, in a process of its own) takes turns with the run on the same batches; `ratio`
is above 1 where the run is faster.
"""

import argparse
import contextlib
import json
import sys

from lm import config, device
from lm.bench.data import DataBench, measure_data
from lm.config import parse_plug


def main() -> int:
  """Exit code: 0 measured, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  kinds = parser.add_subparsers(dest="what", required=True)
  _add_data(kinds.add_parser("data", help="the data wing"))
  _add_step(kinds.add_parser("train", help="the train step of a run"), "none")
  _add_step(kinds.add_parser("finetune", help="the train step of a run that starts from a base, and its peer"), "hf")
  args, rest = parser.parse_known_args()
  settings = vars(args)
  what = settings.pop("what")
  try:
    with contextlib.redirect_stdout(sys.stderr):  # what is said on the way is no figure
      found = _measure_data(settings, rest) if what == "data" else _measure_step(settings, rest)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(found))
  return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
  default = DataBench()
  parser.add_argument("--data", default="pydocs", help="source, e.g. pydocs or 'text(path=\"a.txt\")'")
  parser.add_argument("--task", default="mlm", help="how its text becomes rows")
  parser.add_argument("--tokenizer", default="", help="as config.tokenizer; unset is the one that is trained")
  for name in ("vocab_size", "seq_len", "batch_size"):
    parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
  parser.add_argument("--seconds", type=float, default=default.seconds, help="for which batches are read")


def _add_step(parser: argparse.ArgumentParser, peer: str) -> None:
  parser.add_argument("--config", required=True, help="as of lm.main; --config.NAME=VALUE overrides")
  parser.add_argument("--peer", default=peer, choices=("none", "hf"), help="hf: torch, transformers and peft")
  parser.add_argument("--rounds", type=int, default=7, help="turns of each, beside one that warms up")
  parser.add_argument("--steps", type=int, default=8, help="optimizer steps in a turn")


def _measure_data(settings: dict, rest: list[str]) -> dict:
  if rest:
    raise ValueError(f"{rest[0]}: unknown; see --help")
  source, task = (parse_plug(kind, settings.pop(kind)) for kind in ("data", "task"))
  return measure_data(DataBench(source, task, **settings))


def _measure_step(settings: dict, rest: list[str]) -> dict:
  if min(settings["rounds"], settings["steps"]) < 1:
    raise ValueError(f"--rounds={settings['rounds']} --steps={settings['steps']}: must be at least 1")
  pairs = [flag.removeprefix("--config.").partition("=") for flag in rest]
  if bad := [flag for flag in rest if not flag.startswith("--config.") or "=" not in flag]:
    raise ValueError(f"{bad[0]}: expected --config.NAME=VALUE")
  cfg = config.load(settings["config"], [(name, value) for name, _, value in pairs])
  from lm import build
  from lm.bench import step
  from lm.main import set_up_process

  set_up_process()
  found = step.measure(build.make_run(cfg), settings["rounds"], settings["steps"], settings["peer"] == "hf")
  return {"config": settings["config"], "overrides": rest, **found}


if __name__ == "__main__":
  device.restart_with_huge_pages()
  sys.exit(main())
