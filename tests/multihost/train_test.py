"""Real processes that train one run: the losses of one process, checkpoints for any number of them, one end for all."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from lm import build, checkpoint, config, sharding, train
from tests.multihost import processes
from tests.multihost.processes import ROOT, train_flags


def make_run(workdir, **settings):
  """The same run in this process, on its eight devices."""
  flags = [flag.removeprefix("--config.") for flag in train_flags(workdir, **settings) if flag.startswith("--config.")]
  overrides = [(name, value) for name, _, value in (flag.partition("=") for flag in flags)]
  return build.make_run(config.load(str(ROOT / "configs/tiny.py:smoke"), overrides))


def losses(workdir):
  return np.fromfile(workdir / "losses.f32", "<f4")


def summary(workdir):
  return json.loads((workdir / "summary.json").read_text())


def logged(workdir):
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [(entry["step"], sorted(set(entry) - {"time", "step"})) for entry in lines]


def test_rows_of_a_host_are_those_of_the_whole_batch(tmp_path):
  run = make_run(tmp_path)
  assert sharding.local_rows(run.mesh, 16).tolist() == list(range(16))
  for step in (0, 3):
    whole, some = run.loader.batch(step), run.loader.batch(step, np.array([1, 6, 7]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[[1, 6, 7]], b), whole, some)


def test_two_processes_train_as_one(tmp_path):
  flags = train_flags(tmp_path / "two")
  ended = processes.run([flags, flags], devices=4)
  assert [process.code for process in ended] == [0, 0], [process.error[-2000:] for process in ended]
  one = train.train(make_run(tmp_path), tmp_path / "one")
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5, rtol=0)
  assert logged(tmp_path / "two") == logged(tmp_path / "one")
  two = summary(tmp_path / "two")
  assert two["tokens"] == one["tokens"]
  assert two["metrics"].keys() == one["metrics"].keys()
  for name in ("eval/validation/loss", "eval/validation/bits_per_byte"):
    assert two["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-5)
  assert two["params_sha256"] is None and two["params_sha256_reason"] == "no process has all of the parameters"
  assert "step 6/6" in ended[0].error and "step 6/6" not in ended[1].error
  assert ended[0].out.startswith("cpu: 8 x cpu of 2 processes") and not ended[1].out
  assert not list((tmp_path / "two").glob(".hosts*"))
  found, kept = (checkpoint.load_params(tmp_path / name / "checkpoints")[1] for name in ("two", "one"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, kept)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_any_number_goes_on(tmp_path):
  steps = {"total_steps": 40, "eval_every": 20}
  first, second = tmp_path / "first", tmp_path / "second"
  flags = train_flags(first, **steps)
  started = processes.start([flags, flags], devices=4)
  metrics, deadline = first / "metrics.jsonl", time.monotonic() + 240
  while not metrics.exists() or "train/loss" not in metrics.read_text():
    assert all(process.poll() is None for process in started) and time.monotonic() < deadline
    time.sleep(0.01)
  started[1].send_signal(signal.SIGTERM)
  ended = processes.finish(started)
  assert [process.code for process in ended] == [128 + signal.SIGTERM] * 2, [process.error[-2000:] for process in ended]
  stopped = summary(first)
  assert stopped["status"] == "interrupted" and 0 < stopped["step"] < 40
  shutil.copytree(first, second)

  (one,) = processes.run([flags], devices=8)
  four = processes.run([train_flags(second, **steps)] * 4, devices=2)
  assert [process.code for process in (one, *four)] == [0] * 5, [process.error[-2000:] for process in (one, *four)]
  train.train(make_run(tmp_path, **steps), tmp_path / "unbroken")
  for workdir in (first, second):
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "unbroken"), atol=1e-5, rtol=0)
    assert logged(workdir) == logged(tmp_path / "unbroken")

  evaluate = ["--mode=evaluate", f"--workdir={second}"]
  ended = processes.run([evaluate, evaluate], devices=4)
  assert [process.code for process in ended] == [0, 0], [process.error[-2000:] for process in ended]
  again = json.loads((second / "evaluations" / "40.json").read_text())["metrics"]
  assert again["eval/validation/loss"] == pytest.approx(summary(second)["metrics"]["eval/validation/loss"], abs=1e-5)
  assert "eval/validation/loss" in ended[0].out and not ended[1].out


@pytest.mark.slow
def test_a_run_that_starts_from_a_base_on_two_processes(tmp_path):
  train.train(make_run(tmp_path, total_steps=2), tmp_path / "base")
  flags = train_flags(tmp_path / "two", peft="lora(rank=2)", init_from=tmp_path / "base")
  ended = processes.run([flags, flags], devices=4)
  assert [process.code for process in ended] == [0, 0], [process.error[-2000:] for process in ended]
  ended = processes.run([["--mode=evaluate", f"--workdir={tmp_path / 'two'}"]] * 2, devices=4)
  assert [process.code for process in ended] == [0, 0], [process.error[-2000:] for process in ended]
  assert (tmp_path / "two" / "evaluations" / "6.json").is_file()


def test_processes_that_see_other_folders_all_stop_with_one_line(tmp_path):
  ended = processes.run([train_flags(tmp_path / name) for name in "ab"], devices=1)
  assert [process.code for process in ended] == [2, 2], [process.error[-2000:] for process in ended]
  for process in ended:
    (line,) = [line for line in process.error.splitlines() if line.startswith("error:")]
    assert f"process 1 (host {line.partition('host ')[2].partition(')')[0]}) does not see in --workdir={tmp_path / 'b'}" in line
    assert line.endswith("leads the run")
  assert not list(tmp_path.glob("*/*"))


@pytest.mark.slow
def test_processes_with_other_configs_all_stop_with_one_line(tmp_path):
  ended = processes.run([train_flags(tmp_path), train_flags(tmp_path, seed=3)], devices=1)
  assert [process.code for process in ended] == [2, 2], [process.error[-2000:] for process in ended]
  for process in ended:
    (line,) = [line for line in process.error.splitlines() if line.startswith("error:")]
    assert "process 1 (host " in line and "has another config: seed: 0 -> 3" in line
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_fails_on_one_process_ends_all(tmp_path):
  flags = train_flags(tmp_path)
  for broken in (0, 1):
    own = [[*flags, "--config.batch_size=7"] if index == broken else flags for index in range(2)]
    own[broken][0] = "--config=missing.py"
    ended = processes.run(own, devices=1)
    assert [process.code for process in ended] == [2, 2], [process.error[-2000:] for process in ended]
    assert "missing.py" in ended[broken].error
    other = ended[1 - broken].error.splitlines()[-1]
    assert other.startswith(f"error: process {broken} (host ") and "missing.py" in other
