"""The command line of `python -m lm.main`: flags by mode, overrides, and the workdir that follows from them. No jax here."""

import dataclasses
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm import config, files, plug
from lm.config import Config, ConfigError
from lm.roll import Asked

USAGE = """usage: python -m lm.main --config=FILE[:ARGUMENT] [--workdir=DIR] [--config.SETTING=VALUE ...]
       python -m lm.main --mode=show --config=FILE[:ARGUMENT] [--config.SETTING=VALUE ...]
       python -m lm.main --mode=evaluate --workdir=DIR [--checkpoint=best|last|STEP]
       python -m lm.main --mode=predict --workdir=DIR --input=ROWS --output=FILE [--checkpoint=...] [--text=COLUMN ...]
       python -m lm.main --list[=configs|tasks|models|peft|quantizers|sources|filters|optimizers|regularizers|evaluators]

  --config          a file with get_config(argument), e.g. configs/tiny.py or configs/tiny.py:smoke
  --config.a.b      overrides one setting, e.g. --config.optimizer.learning_rate=3e-4 --config.peft="lora(rank=16)"
  --workdir         where the run lives; the same command continues it after any interruption.
                    Unset: runs/<config>-<hash of overrides>-s<seed>, so that the same command finds the same run
  --accept_changes  goes on in a workdir although a setting that decides its numbers has changed
  --mode            train (the default), show (every setting, its meaning and where it was set), evaluate, predict
  --checkpoint      which one to evaluate or to predict with: best, last (the default) or a step
  --input           rows to predict: csv, tsv, jsonl, parquet, or txt with a text per line
  --output          predictions as jsonl, a line per row in the order of the input; a killed run goes on where it stopped
  --task            whose predictions, where a run has several tasks that predict
  --text            column of the text to predict, or two: --text=question,answer
  --encoding, --delimiter, --quoting, --on_bad_row
                    how the rows are read, as the options of data.table (--list=sources); what is not given, --text too,
                    is as the run read its data. --on_bad_row=skip gives rows that are bad a line without a prediction
  --coordinator, --num_processes, --process_id
                    several processes as one run, each started with the same command but its own --process_id, from 0:
                    HOST:PORT of process 0. Unset: the environment's COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID (or
                    a Job's JOB_COMPLETION_INDEX), else what a TPU VM, GKE, SLURM (srun) or Open MPI says; else it is alone
  --cluster_timeout seconds that processes wait for each other (300)
  --list            what there is of a kind, with its arguments
"""

# Flags of predict that say how its rows are read: options of the source `table`.
READING = ("text", "encoding", "delimiter", "quoting", "on_bad_row")
CLUSTER = tuple(field.name for field in dataclasses.fields(Asked))
# Flag -> the modes that read it. Elsewhere it would have no effect, which is an error.
FLAGS = {
  "mode": ("train", "show", "evaluate", "predict"),
  "config": ("train", "show"),
  "workdir": ("train", "evaluate", "predict"),
  "accept_changes": ("train",),
  "checkpoint": ("evaluate", "predict"),
  "input": ("predict",),
  "output": ("predict",),
  "task": ("predict",),
  **dict.fromkeys(READING, ("predict",)),
  **dict.fromkeys(CLUSTER, ("train", "evaluate")),
}
NEEDED = {"train": ("config",), "show": ("config",), "evaluate": ("workdir",), "predict": ("workdir", "input", "output")}
SWITCHES = ("--help", "-h", "--accept_changes", "--list")  # need no value
KINDS = ("configs", "tasks", "models", "peft", "quantizers", "sources", "filters", "optimizers", "regularizers", "evaluators")


@dataclasses.dataclass(frozen=True)
class Command:
  """What a command line asks for; mode is also "help" or "list"."""

  mode: str = "train"
  config: str = ""
  workdir: str = ""
  accept_changes: bool = False
  checkpoint: str = "last"
  input: str = ""
  output: str = ""
  task: str = ""
  reading: tuple[tuple[str, Any], ...] = ()  # those of READING that are given
  cluster: Asked = Asked()
  kind: str = ""  # of --list; "" is all
  overrides: tuple[tuple[str, str], ...] = ()


def parse(argv: Sequence[str]) -> Command:
  """The command of a command line, flags as --name=value or --name value.

  Raises:
    ConfigError: an unknown flag, one without value or without effect, or one that is missing.
  """
  given: dict[str, str] = {}
  overrides: list[tuple[str, str]] = []
  for flag, value in _pairs(argv):
    if flag.startswith("--config."):
      overrides.append((flag.removeprefix("--config."), value))
    else:
      given[flag.removeprefix("--")] = value
  if "help" in given:
    return Command("help")
  if "list" in given:
    if given["list"] not in ("", *KINDS):
      raise ConfigError(f"--list={given['list']}: accepted are {', '.join(KINDS)}")
    return Command("list", kind=given["list"])
  mode = given.get("mode", "train")
  if mode not in FLAGS["mode"]:
    raise ConfigError(f"--mode={mode}: accepted are {', '.join(FLAGS['mode'])}")
  unread = [flag for flag in given if mode not in FLAGS[flag]]
  unread += [f"config.{name}" for name, _ in overrides if mode not in FLAGS["config"]]
  if unread:
    raise ConfigError(f"--{unread[0]}: has no effect with --mode={mode}")
  missing = [flag for flag in NEEDED[mode] if not given.get(flag)]
  if missing:
    raise ConfigError(f"--{missing[0]}: missing; --mode={mode} needs it (see --help)")
  accept = given.pop("accept_changes", None) is not None
  reading = tuple((name, given.pop(name)) for name in READING if name in given)
  cluster = Asked(**{name: given.pop(name) for name in CLUSTER if name in given})
  return Command(**{**given, "mode": mode}, accept_changes=accept, reading=reading, cluster=cluster, overrides=tuple(overrides))


def split_overrides(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
  """(setting, value) of every --config.SETTING=VALUE, and the arguments that are none.

  Raises:
    ConfigError: one without a value.
  """
  ours = [argument for argument in arguments if argument.startswith("--config.")]
  if lacking := [argument for argument in ours if "=" not in argument]:
    raise ConfigError(f"{lacking[0]}: needs a value, {lacking[0]}=...")
  pairs = (argument.removeprefix("--config.").partition("=") for argument in ours)
  return [(name, value) for name, _, value in pairs], [argument for argument in arguments if argument not in ours]


def workdir(command: Command, cfg: Config) -> Path:
  """The --workdir, or runs/<config stem>[-<argument>][-<hash of overrides>]-s<seed>.

  Only overrides that decide the run's numbers count, since execution settings may change when it is resumed. `total_steps`
  decides them where the learning rates depend on it; where they do not, more steps find the run that they continue.
  """
  if command.workdir:
    return files.path(command.workdir, "--workdir")
  file, _, argument = command.config.partition(":")
  free = ("seed", "total_steps") if _can_be_made_longer(cfg) else ("seed",)
  decides = lambda name: name not in free and config.is_identity(name)
  settings = {name: plug.parse_text(value) for name, value in command.overrides if decides(name)}
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:8]
  parts = [Path(file).stem, re.sub(r"[^\w.=+-]+", "_", argument), digest if settings else "", f"s{cfg.seed}"]
  return Path("runs", "-".join(part for part in parts if part))


def _can_be_made_longer(cfg: Config) -> bool:
  """Whether the learning rates are the same for any `total_steps`: constant, after a warm-up that is set in steps."""
  options = dict(cfg.optimizer.options)
  return options.get("schedule") == "constant" and "warmup_steps" in options and "%" not in str(options["warmup_steps"])


def next_commands(workdir: Path, heads: set[str], exports: bool, best: bool) -> list[str]:
  """What to type after a run: evaluate, use, look. heads: those that its tasks read.

  exports: whether transformers can. best: whether a best checkpoint was recorded; without one it is the last that is used.
  """
  where = shlex.quote(str(workdir))
  exported = shlex.quote(f"{workdir.name if files.is_remote(workdir) else workdir}-hf")
  chosen = " --checkpoint=best" if best else ""
  lines = [f"python -m lm.main --mode=evaluate --workdir={where}{chosen}"]
  if "lm" in heads:
    lines.append(f'python -m tools.generate --workdir={where} --prompt="..."')
  if heads & {"classify", "tag", "span"}:
    texts = " --text=question,context" if "span" in heads else ""
    input = f"--input=rows.csv --output=predictions.jsonl{texts}"
    lines.append(f"python -m lm.main --mode=predict --workdir={where}{chosen} {input}")
  if exports:
    lines.append(f"python -m tools.convert export --from={where} --to={exported}{chosen}")
  return [*lines, f"python -m tools.report {where}", f"tensorboard --logdir {where}  # pip install tensorboard"]


def _hint(flag: str) -> str:
  """What was meant: a flag, or a setting without its --config in front."""
  known = [*(f"--{name}" for name in FLAGS), "--help", "--list"]
  below = [f"--config.{kind}.{flag.removeprefix('--')}" for kind in plug.kinds_with(flag.removeprefix("--"))]
  near = below or difflib.get_close_matches(flag, [*known, *(f"--config.{name}" for name in config.FIELDS)], 1, 0.6)
  return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)} and --config.SETTING"


def _pairs(argv: Sequence[str]) -> list[tuple[str, str]]:
  """(--flag, value) of every argument; "" is the value of a switch."""
  pairs: list[tuple[str, str]] = []
  arguments = list(argv)
  while arguments:
    argument = arguments.pop(0)
    flag, equals, value = argument.partition("=")
    if flag.removeprefix("--") not in FLAGS and flag not in SWITCHES and not flag.startswith("--config."):
      raise ConfigError(f"{argument}: unknown flag{_hint(flag)}")
    if not equals and flag not in SWITCHES:
      if not arguments or arguments[0].startswith("--"):
        raise ConfigError(f"{flag}: needs a value, {flag}=...")
      value = arguments.pop(0)
    if flag in ("--help", "-h", "--accept_changes") and equals:
      raise ConfigError(f"{argument}: {flag} takes no value")
    pairs.append(("--help" if flag == "-h" else flag, value))
  return pairs
