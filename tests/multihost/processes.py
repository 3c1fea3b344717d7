"""Real processes of one run on this machine: each with devices of its own, joined through a free port."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.conftest import CACHE

ROOT = Path(__file__).parents[2]
MODEL = {"model.num_layers": 1, "model.model_dim": 32, "model.ffn_dim": 32, "seq_len": 32, "tokenizer": "bytes"}
DATA = {"data": "memory(texts=('one two three', 'four five', 'six'))", "cache_dir": CACHE / "data", "log_every": 1}
SETTINGS = {**MODEL, **DATA, "total_steps": 6, "eval_every": 3, "mesh.data": 2, "mesh.fsdp": 4}

# A line of gloo about its ranks. Its threads write in pieces, which may come in any order and share lines.
GLOO = re.compile(r"(?:\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d+)*\n?")


class Ended(NamedTuple):
  """How a process ended, and what it said, without the lines of gloo."""

  code: int
  out: str
  error: str


def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
  """That of a process with so many devices and one compile cache for all."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  return {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(CACHE / "xla"), **more}


def train_flags(workdir: Path | str, **settings) -> list[str]:
  """The flags that train a tiny model; settings with __ for a dot replace those of SETTINGS."""
  values = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
  flags = ["--config=configs/tiny.py:smoke", f"--workdir={workdir}"]
  return flags + [f"--config.{name}={value}" for name, value in values.items()]


def start(
  flags: Sequence[Sequence[str]], devices: int, timeout: int = 60, program: Sequence[str] = ("-m", "lm.main")
) -> list[subprocess.Popen]:
  """One process of lm.main, or of another program of Python, for each list of flags, all of one run."""
  count, port = len(flags), free_port()
  joined = [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--cluster_timeout={timeout}"]
  started = []
  for index, own in enumerate(flags):
    both = [*joined, f"--process_id={index}"] if count > 1 else []
    command = [sys.executable, *program, *own, *both]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(command, cwd=ROOT, env=environment(devices), **pipes))
  return started


def finish(processes: Sequence[subprocess.Popen], seconds: float = 240) -> list[Ended]:
  """Waits for all; none is left when time is over."""
  deadline, found = time.monotonic() + seconds, []
  try:
    for process in processes:
      out, error = process.communicate(timeout=max(deadline - time.monotonic(), 1))
      ours = "".join(line for line in out.splitlines(keepends=True) if not GLOO.fullmatch(line))
      found.append(Ended(process.returncode, ours, error))
  finally:
    for process in processes:
      process.kill()
  return found


def run(flags: Sequence[Sequence[str]], devices: int, **options) -> list[Ended]:
  """Starts processes and waits for them."""
  return finish(start(flags, devices, **options))
