"""Real command lines, as processes: exit code, the one line of an error, nothing written by it, and how long each takes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CACHE

ROOT = Path(__file__).parent.parent
TINY, MLM, TUNE = (str(ROOT / "configs" / f"{name}.py") for name in ("tiny", "tiny_mlm", "finetune"))
KEPT = str(ROOT / "tests" / "formats" / "1")  # a classifier's workdir
# Seconds a command may take when it fails, shows or helps: of its own computing where a busy machine lets it wait.
HELP, BAD, SHOW = 1.0, 2.0, 5.0


def run(folder: Path, argv: list[str]) -> tuple[subprocess.CompletedProcess, float]:
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "COLUMNS": "160"}
  env["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "xla")
  began, before = time.monotonic(), os.times()
  command = [sys.executable, "-m", "lm.main", *argv]
  done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
  after = os.times()
  computed = after.children_user - before.children_user + after.children_system - before.children_system
  return done, min(time.monotonic() - began, computed)


def within(limit: float, folder: Path, argv: list[str]) -> subprocess.CompletedProcess:
  for _ in range(3):
    done, seconds = run(folder, argv)
    if seconds < limit:
      return done
  raise AssertionError(f"took {seconds:.1f} s three times, at most {limit} s: {argv}")


# What is wrong before jax is needed: (arguments, words of the line).
BAD_FLAGS = [
  ([], ["--config: missing"]),
  (["--confg=x"], ["--confg", "did you mean '--config'"]),
  (["--config"], ["--config: needs a value"]),
  (["--config=nothing.py"], ["nothing.py", "no such file"]),
  ([f"--config={TINY}:smokey"], ["smokey", "accepted"]),
  ([f"--config={TINY}", "--config.optimzer=adamw"], ["config.optimzer", "'optimizer'"]),
  ([f"--config={TINY}", "--config.batch_size=many"], ["config.batch_size", "an integer", "'many'"]),
  ([f"--config={TINY}", "--config.batch_size=1.5"], ["config.batch_size", "1.5"]),
  ([f"--config={TINY}", "--config.total_steps=3 fortnights"], ["total_steps", "fortnights"]),
  ([f"--config={TINY}", "--config.total_steps=0 epochs"], ["total_steps", "above 0"]),
  ([f"--config={TINY}", "--config.dtype=float8"], ["dtype", "bfloat16"]),
  ([f"--config={TINY}", "--config.peft=lora(rank=4"], ["config.peft", "lora(rank=4"]),
  ([f"--config={TINY}", "--config.peft.rank=4", "--config.peft=lora"], ["peft.rank", "dropped"]),
  ([f"--config={TINY}", "--mode=trian"], ["--mode=trian", "train, show"]),
  ([f"--config={TINY}", "--checkpoint=best"], ["--checkpoint", "no effect"]),
  (["--list=task"], ["--list=task", "tasks"]),
  (["--mode=evaluate", "--workdir=missing"], ["missing", "config.json"]),
  (["--mode=predict", f"--workdir={KEPT}", "--input=rows.csv"], ["--output: missing"]),
]
# What is wrong once plug-ins are looked at.
BAD_RUNS = [
  ([f"--config={TINY}:smoke", "--config.optimizer.learning_rat=1"], ["learning_rat", "'learning_rate'"]),
  ([f"--config={TINY}:smoke", "--config.peft=lroa"], ["lroa", "'lora'"]),
  ([f"--config={TINY}:smoke", "--config.data.split=test"], ["split", "data 'pydocs'"]),
  ([f"--config={TINY}:smoke", "--config.model=gpt3"], ["gpt3", "gpt2"]),
  ([f"--config={TINY}:smoke", "--config.tokenizer=missing.model"], ["missing.model", "train_tokenizer"]),
  ([f"--config={TINY}:smoke", "--config.resume_from=missing"], ["resume_from", "missing"]),
  (
    [
      f"--config={TUNE}",
      f"--config.init_from={KEPT}",
      "--config.seq_len=64",
      "--config.length_buckets=64",
      "--config.data.path=missing.csv",
    ],
    ["missing.csv", "no such file"],
  ),
  (["--mode=evaluate", f"--workdir={KEPT}", "--checkpoint=7"], ["checkpoint='7'", "20"]),
  (["--mode=predict", f"--workdir={KEPT}", "--input=missing.csv", "--output=x.jsonl"], ["missing.csv", "no such file"]),
]
GOOD = [
  (["--list"], SHOW, ["configs:", "lora", "rank=8", "muon"]),
  (["--list=peft"], SHOW, ["lora", "alpha=16.0  what the product is multiplied by"]),
  (["--list=models"], SHOW, ["gpt2-xl", "48 layers of 1600"]),
  (["--list=optimizers"], SHOW, ["warmup_steps=2%"]),
  (["--list=sources"], SHOW, ["pydocs", "table"]),
  (["--mode=show", f"--config={TINY}:smoke"], SHOW, ["optimizer.learning_rate", "file", "parameters: ", "steps: 20"]),
  (["--mode=show", f"--config={TINY}:smoke", "--config.peft=lora(rank=16)"], SHOW, ["peft.rank", "16", "flag", "trainable"]),
  (["--mode=show", f"--config={TINY}:smoke", "--config.peft=lora", "--config.peft.rank=1_6"], SHOW, ["peft.rank", "16"]),
  (["--mode=show", f"--config={MLM}:smoke", "--config.total_steps=1e5"], SHOW, ["100000", "100,000 of 8 rows"]),
  (["--mode=show", f"--config={MLM}:smoke", "--config.optimizer=adamw"], SHOW, ["adamw", "0.001", "optimizer.eps"]),
]


def ids(table):
  return [" ".join(argv).replace(str(ROOT), "") or "nothing" for argv, *_ in table]


@pytest.mark.parametrize(("argv", "words"), BAD_FLAGS, ids=ids(BAD_FLAGS))
def test_a_config_error_is_one_line_within_two_seconds(argv, words, tmp_path):
  done = within(BAD, tmp_path, argv)
  check_error(done, words, tmp_path)


@pytest.mark.parametrize(("argv", "words"), BAD_RUNS, ids=ids(BAD_RUNS))
def test_a_run_that_cannot_be_is_one_line(argv, words, tmp_path):
  cache = [] if "--mode" in argv[0] else [f"--config.cache_dir={CACHE / 'data'}"]
  done, _ = run(tmp_path, [*argv, *cache])
  check_error(done, words, tmp_path)


def check_error(done, words, folder):
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  assert all(word in done.stderr for word in words), done.stderr
  assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("argv", "limit", "words"), GOOD, ids=ids(GOOD))
def test_show_and_list_say_what_there_is(argv, limit, words, tmp_path):
  os.symlink(ROOT / "configs", tmp_path / "configs")
  done = within(limit, tmp_path, argv)
  assert done.returncode == 0, done.stderr
  assert all(word in done.stdout for word in words), done.stdout
  assert {path.name for path in tmp_path.iterdir()} == {"configs"}


@pytest.mark.parametrize("argv", [["--help"], ["-h", f"--config={TINY}"]], ids=["help", "h"])
def test_help_comes_within_a_second(argv, tmp_path):
  done = within(HELP, tmp_path, argv)
  assert done.returncode == 0 and done.stdout.startswith("usage: python -m lm.main")


@pytest.mark.parametrize("best_metric", ["auto", ""])
def test_the_first_hour(best_metric, tmp_path):
  """Train without a workdir, again, evaluate, predict: what a run prints as next commands works as printed."""
  (tmp_path / "runs").mkdir()
  data = "memory(texts=('good one','bad one','good two','bad two'),text_labels=('pos','neg','pos','neg'))"
  argv = [f"--config={MLM}:smoke", "--config.task=classify", f"--config.data={data}", "--config.seq_len=32"]
  argv += ["--config.total_steps=3", "--config.model.num_layers=1", f"--config.cache_dir={CACHE / 'data'}"]
  argv += [f"--config.best_metric={best_metric}"]
  done, _ = run(tmp_path, argv)
  assert done.returncode == 0, done.stderr
  first, second, *_ = done.stdout.splitlines()
  assert first == "cpu: 1 x cpu"
  workdir = second.removeprefix("workdir: ")
  assert workdir.startswith("runs/tiny_mlm-smoke-") and workdir.endswith("-s0")
  following = [line.removeprefix("  python -m lm.main ") for line in done.stdout.splitlines() if "--mode=" in line]
  again, _ = run(tmp_path, argv)
  assert again.returncode == 0 and "finished at step 3; nothing to do" in again.stdout
  (tmp_path / "rows.csv").write_text('text,stars\ngood one,5\n"bad, one",1\n')
  for line in following:
    done, _ = run(tmp_path, line.split())
    assert done.returncode == 0, done.stderr
  assert (tmp_path / workdir / "evaluations" / "3.json").is_file()
  rows = (tmp_path / "predictions.jsonl").read_text().splitlines()
  assert len(rows) == 2 and '"stars": "1"' in rows[1] and '"scores"' in rows[1]
