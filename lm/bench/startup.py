"""How long a user waits: for help, for the word that a setting is wrong, and for the first step of a run."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from lm import device
from lm.bench.turns import figures
from lm.config import ConfigError

MAIN = (sys.executable, "-m", "lm.main")
WRONG = "--config.seq_length=1"  # no setting, so that its like is named


def measure(config: str, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
  """Programs are started `rounds` times each, after one that is not counted and fills the caches.

  Returns:
    `turns.figures` of `help`, `config_error` and `first_step`, the time from the start of the program until it says that it
    took its first step. first_step["seconds_before"]: that of the one that was not counted.

  Raises:
    ConfigError: the run does not start; it says why.
  """
  found: dict[str, Any] = {
    "help": figures([_until_exit("--help", code=0) for _ in range(rounds + 1)][1:]),
    "config_error": figures([_until_exit(f"--config={config}", WRONG, code=2) for _ in range(rounds + 1)][1:]),
  }
  before, *seconds = [_until_first_step(config, overrides) for _ in range(rounds + 1)]
  return found | {"first_step": figures(seconds) | {"seconds_before": round(before, 3)}}


def _until_exit(*arguments: str, code: int) -> float:
  began = time.perf_counter()
  ended = subprocess.run([*MAIN, *arguments], capture_output=True, text=True, check=False, env=_environment())
  assert ended.returncode == code, ended.stderr
  return time.perf_counter() - began


def _until_first_step(config: str, overrides: Sequence[str]) -> float:
  """Seconds; the run is killed then."""
  said: list[str] = []
  with tempfile.TemporaryDirectory() as folder:
    arguments = [f"--config={config}", f"--workdir={folder}/run", *overrides, "--config.log_every=1"]
    began = time.perf_counter()
    with subprocess.Popen(
      [*MAIN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
    ) as program:
      assert program.stdout is not None
      for line in program.stdout:
        if line.startswith("step 1/"):
          seconds = time.perf_counter() - began
          program.kill()
          return seconds
        said.append(line.strip())
  raise ConfigError(f"startup: the run ended before its first step: {next(filter(None, reversed(said)), '')}")


def _environment() -> dict[str, str]:
  """As a user has it, who starts a program that starts itself anew for its memory's sake."""
  mine = {device.RESTARTED, *(["GLIBC_TUNABLES"] if device.RESTARTED in os.environ else [])}
  return {name: value for name, value in os.environ.items() if name not in mine}
