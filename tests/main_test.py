"""The command line as a process: a signal saves, the same command continues, the result is that of an unbroken run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent


def start(workdir):
  command = [sys.executable, "-m", "lm.main", "--config=configs/tiny.py:smoke", f"--workdir={workdir}"]
  settings = {"model.num_layers": 1, "model.model_dim": 32, "model.ffn_dim": 32, "seq_len": 32, "total_steps": 400}
  settings |= {
    "log_every": 5,
    "eval_every": 400,
    "data": "memory(texts=('one two three', 'four five'))",
    "cache_dir": CACHE / "data",
  }
  flags = [f"--config.{name}={value}" for name, value in settings.items()]
  env = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(CACHE / "xla")}
  return subprocess.Popen([*command, *flags], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def test_sigterm_saves_and_the_same_command_continues(tmp_path):
  process = start(tmp_path / "a")
  deadline = time.monotonic() + 120
  metrics = tmp_path / "a" / "metrics.jsonl"
  while not metrics.exists() or "train/loss" not in metrics.read_text():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGTERM, error
  assert "the same command continues" in error
  assert json.loads((tmp_path / "a" / "summary.json").read_text())["status"] == "interrupted"

  resumed, whole = start(tmp_path / "a"), start(tmp_path / "b")
  for process in (resumed, whole):
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
  first, second = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
  assert first["status"] == second["status"] == "finished"
  assert (tmp_path / "a" / "curves.png").stat().st_size > 10_000
  assert (first["loss_sha256"], first["params_sha256"]) == (second["loss_sha256"], second["params_sha256"])


def test_what_was_compiled_is_kept_up_to_a_size(tmp_path):
  """The least recently used goes first; what a kill left half written does not stop what comes after."""
  (tmp_path / "half-cache").write_bytes(b"0" * 10)
  code = f"""
import jax, os, pathlib
from lm import main
folder = pathlib.Path({str(tmp_path)!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
main._keep_compiled(folder, 15_000)
seen = set()
for i in range(8):
  jax.jit(lambda x, i=i: (x * i + 1) @ x)(jax.numpy.ones((4, 4)))
  seen |= {{(path.name, path.stat().st_size) for path in folder.glob("*-cache")}}
print(sum(size for _, size in seen), sum(path.stat().st_size for path in folder.glob("*-cache")))
print((folder / "half-cache").exists())
"""
  env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
  ended = subprocess.run(
    [sys.executable, "-c", code], env=env | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, cwd=ROOT, check=True
  )
  written, kept, half = ended.stdout.split()
  assert int(written) > 15_000 >= int(kept) > 0
  assert half == "False"
  assert "Error" not in ended.stderr
