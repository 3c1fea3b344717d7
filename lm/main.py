"""python -m lm.main --config=configs/x.py --workdir=DIR [--config.a.b=value ...]

Flags and process set-up, then config -> run -> train. Everything else is in functions that notebooks call too.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lm import config

USAGE = """usage: python -m lm.main --config=FILE[:ARGUMENT] --workdir=DIR [--config.SETTING=VALUE ...]

  --config      a file with get_config(argument), e.g. configs/tiny.py or configs/tiny.py:smoke
  --workdir     where the run lives; the same command continues it after any interruption
  --config.a.b  overrides one setting, e.g. --config.optimizer.learning_rate=3e-4 --config.peft="lora(rank=16)"
"""


def main(argv: list[str]) -> int:
  """Returns the exit code: 0 done, 1 loss not finite, 2 bad input (one line on stderr), 128 + signal when interrupted."""
  try:
    options, overrides = config.parse_args(argv)
    if "help" in options:
      print(USAGE, end="")
      return 0
    for flag in ("config", "workdir"):
      if not options.get(flag):
        raise config.ConfigError(f"--{flag}: missing\n{USAGE}".rstrip())
    return _train(config.load(options["config"], overrides), Path(options["workdir"]))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  except FloatingPointError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1


def _train(cfg: config.Config, workdir: Path) -> int:
  set_up_process()
  from lm import build, record, report, train

  received: list[int] = []
  stop = stop_on_signals(received)
  record.check(cfg, workdir)
  summary = train.train(build.make_run(cfg), workdir, stop=stop)
  report.draw_run(workdir)
  return 128 + received[0] if summary["status"] == "interrupted" else 0


def set_up_process() -> None:
  """Persistent compilation cache in the user's cache folder, unless the environment names another; quiet libraries."""
  import logging

  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lm" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  logging.getLogger("absl").setLevel(logging.ERROR)


def stop_on_signals(received: list[int]) -> Callable[[], bool]:
  """The first SIGINT or SIGTERM asks the loop to save and stop, the second ends the process at once."""

  def handle(number, _frame):
    received.append(number)
    signal.signal(number, signal.SIG_DFL)

  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handle)
  return lambda: bool(received)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
