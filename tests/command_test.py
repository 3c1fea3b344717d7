"""The command line: flags by mode, one clear line for a wrong one, the workdir that a command finds again."""

from pathlib import Path

import pytest

from lm import command, config
from lm.command import Command
from lm.config import ConfigError
from lm.roll import Asked

FILE = "configs/tiny.py"


def test_flags_and_overrides():
  argv = ["--config", "a.py:x", "--workdir=w", "--config.peft=lora(rank=4)"]
  argv += ["--config.total_steps", "-5", "--config.task.x=a=b"]
  overrides = (("peft", "lora(rank=4)"), ("total_steps", "-5"), ("task.x", "a=b"))
  assert command.parse(argv) == Command(config="a.py:x", workdir="w", overrides=overrides)
  assert command.parse(["--help"]) == command.parse(["-h", "--config=x"]) == Command("help")
  assert command.parse(["--list"]) == Command("list")
  assert command.parse(["--list=peft"]) == Command("list", kind="peft")
  assert command.parse(["--config=a.py", "--accept_changes", "--workdir=w"]).accept_changes
  asked = command.parse(["--mode=predict", "--workdir=w", "--input=a.csv", "--output", "b.jsonl", "--checkpoint=30"])
  assert (asked.mode, asked.input, asked.output, asked.checkpoint) == ("predict", "a.csv", "b.jsonl", "30")
  asked = command.parse(["--mode=predict", "--workdir=w", "--input=a", "--output=b", "--text=a,b", "--delimiter=;"])
  assert asked.reading == (("text", "a,b"), ("delimiter", ";"))
  several = ["--coordinator=a:80", "--num_processes=2", "--process_id=1", "--cluster_timeout=60"]
  for mode in (["--config=a.py"], ["--mode=evaluate", "--workdir=w"]):
    assert command.parse([*mode, *several]).cluster == Asked("a:80", "2", "1", "60")


@pytest.mark.parametrize(
  ("argv", "line"),
  [
    (["--confg=x"], "--confg=x: unknown flag; did you mean '--config'?"),
    (["--wrkdir", "x"], "--wrkdir: unknown flag; did you mean '--workdir'?"),
    (["--config", "a.py", "b.py"], "b.py: unknown flag; there are --mode, --config, --workdir"),
    (["--total_steps=3"], "--total_steps=3: unknown flag; did you mean '--config.total_steps'?"),
    (["--seed=3"], "--seed=3: unknown flag; did you mean '--config.seed'?"),
    (["--learning_rate=3"], "--learning_rate=3: unknown flag; did you mean '--config.optimizer.learning_rate'?"),
    (["config.seed=3"], "config.seed=3: unknown flag; did you mean '--config.seed'?"),
    (["--accept-changes"], "--accept-changes: unknown flag; did you mean '--accept_changes'?"),
    (["--config"], "--config: needs a value"),
    (["--config", "--workdir=x"], "--config: needs a value"),
    (["--config.seed"], "--config.seed: needs a value"),
    ([], "--config: missing; --mode=train needs it"),
    (["--config="], "--config: missing"),
    (["--mode=tran", "--config=a.py"], "--mode=tran: accepted are train, show"),
    (["--list=task"], "--list=task: accepted are configs, tasks"),
    (["--help=me"], "--help=me: --help takes no value"),
    (["--config=a.py", "--accept_changes=yes"], "--accept_changes=yes: --accept_changes takes no value"),
    (["--mode=show", "--config=a.py", "--coordinator=a:80"], "--coordinator: has no effect with --mode=show"),
    (["--config=a.py", "--input=a.csv"], "--input: has no effect with --mode=train"),
    (["--config=a.py", "--text=a"], "--text: has no effect with --mode=train"),
    (["--config=a.py", "--checkpoint=best"], "--checkpoint: has no effect with --mode=train"),
    (["--mode=show", "--config=a.py", "--workdir=w"], "--workdir: has no effect with --mode=show"),
    (["--mode=evaluate", "--workdir=w", "--config.seed=1"], "--config.seed: has no effect with --mode=evaluate"),
    (["--mode=evaluate"], "--workdir: missing; --mode=evaluate needs it"),
    (["--mode=predict", "--workdir=w", "--input=a.csv"], "--output: missing"),
  ],
)
def test_bad_flags_are_one_clear_line(argv, line):
  with pytest.raises(ConfigError) as error:
    command.parse(argv)
  assert str(error.value).startswith(line)


def workdir(*argv, path=FILE):
  asked = command.parse([f"--config={path}", *argv])
  return command.workdir(asked, config.load(path, list(asked.overrides)))


def test_the_same_command_finds_the_same_run():
  assert workdir() == Path("runs/tiny-s0")
  assert workdir(path=f"{FILE}:smoke") == Path("runs/tiny-smoke-s0")
  assert workdir("--config.seed=3", "--config.log_every=2") == Path("runs/tiny-s3")
  changed = workdir("--config.optimizer.learning_rate=3e-4", "--config.batch_size=16")
  assert changed == workdir("--config.batch_size=1_6", "--config.optimizer.learning_rate=0.0003", "--config.mesh.data=1")
  assert changed != workdir("--config.optimizer.learning_rate=3e-4")
  assert changed.name.startswith("tiny-") and changed.name.endswith("-s0")
  assert workdir("--workdir=elsewhere") == Path("elsewhere")


def test_more_steps_find_the_run_that_they_continue_and_another_schedule_another_run():
  constant = ("--config.optimizer.schedule=constant", "--config.optimizer.warmup_steps=20")
  assert workdir(*constant) == workdir(*constant, "--config.total_steps=800") != workdir()
  share = (constant[0], "--config.optimizer.warmup_steps=2%")
  for flags in ((), constant[:1], constant[1:], share):
    assert workdir(*flags, "--config.total_steps=800") != workdir(*flags)
