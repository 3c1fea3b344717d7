"""Sweeps: finished trials are skipped, failed ones kept, statistics over seeds are right, bad sweep files are one line."""

import csv
import dataclasses
import json
import statistics

import pytest

from lm import config, sweep
from lm.config import ConfigError

SWEEP = sweep.Sweep(
  configs=["configs/tiny.py:smoke"],
  seeds=[0, 1, 2],
  metrics=["eval/test/accuracy"],
  baselines=["baseline/test_majority_accuracy"],
  grid={"optimizer.learning_rate": [0.001, 0.01]},
)


def summary_of(cfg, _workdir=None):
  good = "0.001" in str(cfg.optimizer)
  accuracy = 0.5 + cfg.seed / 10 + (0.2 + cfg.seed / 100 if good else 0.0)
  metrics = {"eval/test/accuracy": accuracy, "step0/eval/test/accuracy": 0.1, "baseline/test_majority_accuracy": 0.3}
  return {"status": "finished", "tokens": 1000, "metrics": metrics}


def run(directory, run_trial=summary_of, spec=SWEEP):
  return sweep.run_sweep(spec, sweep.make_trials(spec, directory), directory, run_trial)


def test_mean_deviation_and_paired_differences(tmp_path):
  records = run(tmp_path)
  assert [record["workdir"].rsplit("/", 1)[1] for record in records][:2] == [
    "tiny-learning_rate=0.001-s0",
    "tiny-learning_rate=0.001-s1",
  ]
  summary = sweep.summarise(records, SWEEP)
  found = summary["variants"]["tiny-learning_rate=0.001"]["eval/test/accuracy"]
  assert found["mean"] == pytest.approx(0.81)
  assert found["std"] == pytest.approx(statistics.stdev([0.7, 0.81, 0.92]))
  (difference,) = summary["differences"].values()
  assert difference["eval/test/accuracy"]["mean"] == pytest.approx(0.21)
  assert difference["eval/test/accuracy"]["std"] == pytest.approx(0.01)  # paired: far below that of either variant


def test_table_and_picture_and_numbers_are_written(tmp_path):
  table = sweep.write(run(tmp_path), SWEEP, tmp_path)
  assert table.rows == [
    ["majority", "", "0.300"],
    ["tiny-learning_rate=0.001, step 0", "3", "0.100 ± 0.000 [0.100, 0.100]"],
    ["tiny-learning_rate=0.001", "3", "0.810 ± 0.110 [0.537, 1.083]"],
    ["tiny-learning_rate=0.01, step 0", "3", "0.100 ± 0.000 [0.100, 0.100]"],
    ["tiny-learning_rate=0.01", "3", "0.600 ± 0.100 [0.352, 0.848]"],
    ["tiny-learning_rate=0.001 - tiny-learning_rate=0.01, by seed", "3", "+0.210 ± 0.010 [+0.185, +0.235]"],
  ]
  assert (tmp_path / "sweep.md").read_text() == table.markdown()
  assert (tmp_path / "sweep.png").stat().st_size > 10_000
  assert json.loads((tmp_path / "sweep.json").read_text())["baselines"] == {"baseline/test_majority_accuracy": 0.3}
  rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
  assert [(row["variant"], row["seed"], row["tokens"]) for row in rows][3] == ("tiny-learning_rate=0.01", "0", "1000")
  assert float(rows[3]["eval/test/accuracy"]) == 0.5


def test_variants_that_read_other_numbers_of_tokens_are_said(tmp_path):
  def run_trial(cfg, _):
    return summary_of(cfg) | {"tokens": 1020 if "0.001" in str(cfg.optimizer) else 1000}

  sweep.write(run(tmp_path, run_trial), SWEEP, tmp_path)
  assert "differ:\n- tiny-learning_rate=0.001: 1,020\n- tiny-learning_rate=0.01: 1,000\n" in (tmp_path / "sweep.md").read_text()


def test_one_seed_has_no_deviation():
  records = [
    {"variant": "a", "seed": 0, "status": "finished", **{k: summary_of(config.Config())[k] for k in ("tokens", "metrics")}}
  ]
  assert sweep.tabulate(sweep.summarise(records, SWEEP), SWEEP).rows[-1] == ["a", "1", "0.500"]


def test_a_finished_trial_is_skipped_unless_its_config_changed(tmp_path):
  ran = []

  def run_trial(cfg, workdir):
    ran.append(workdir.name)
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(config.to_dict(cfg)))
    status = "interrupted" if len(ran) == 4 else "finished"
    (workdir / "manifest.json").write_text('{"format": 1, "total_steps": 5}')
    (workdir / "summary.json").write_text(json.dumps(summary_of(cfg) | {"status": status, "step": 5}))
    return json.loads((workdir / "summary.json").read_text())

  assert [record["status"] for record in run(tmp_path, run_trial)] == ["finished"] * 3 + ["interrupted"]  # and stops there
  again = run(tmp_path, run_trial)
  assert [record["status"] for record in again] == ["finished"] * 6
  assert len(ran) == 4 + 3 and ran[3] == ran[4]
  assert again == run(tmp_path, run_trial) and len(ran) == 7
  other = dataclasses.replace(SWEEP, seeds=[0], grid={**SWEEP.grid, "batch_size": [4]})
  (trial, *_) = sweep.make_trials(other, tmp_path)
  workdir = tmp_path / "tiny-learning_rate=0.001-s0"
  assert sweep._finished(trial[2], workdir) is None
  (same, *_) = sweep.make_trials(SWEEP, tmp_path)
  assert sweep._finished(same[2], workdir)
  (workdir / "manifest.json").write_text('{"format": 1, "total_steps": 9}')  # it was given more steps, and killed
  assert sweep._finished(same[2], workdir) is None


def test_a_preview_says_what_would_be_run_and_runs_nothing(tmp_path):
  spec = dataclasses.replace(SWEEP, grid={"model.num_layers": [1, 2], "total_steps": [3]}, seeds=[0])
  trials = sweep.make_trials(spec, tmp_path, [("tokenizer", "bytes"), ("model.vocab_size", "261")])
  one, two = sweep.preview(trials).rows
  assert one[0].startswith("tiny-num_layers=1") and one[1] == two[1] == "new"
  assert int(one[2].replace(",", "")) < int(two[2].replace(",", "")) and one[2] == one[3]
  assert one[4] == "3" and float(one[5]) < float(two[5])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ValueError, ConfigError, FloatingPointError, OSError])
def test_a_failed_trial_is_kept_and_the_others_run(tmp_path, error):
  def run_trial(cfg, _):
    if cfg.seed == 1:
      raise error("bad luck")
    return summary_of(cfg)

  records = run(tmp_path, run_trial)
  assert [record["status"] for record in records] == ["finished", "failed", "finished"] * 2
  kept = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
  assert kept == records and kept[1]["error"] == f"{error.__name__}: bad luck"
  assert sweep.write(records, SWEEP, tmp_path).rows[2][1] == "2"
  assert "seed 1" in (tmp_path / "sweep.md").read_text()


def test_without_a_finished_trial_there_is_an_empty_table(tmp_path):
  def run_trial(*_):
    raise ValueError("bad luck")

  assert sweep.write(run(tmp_path, run_trial), SWEEP, tmp_path).rows == []
  assert not (tmp_path / "sweep.png").exists()


def test_a_metric_that_a_run_lacks_fails_the_trial_and_names_those_it_has(tmp_path):
  records = run(tmp_path, spec=dataclasses.replace(SWEEP, metrics=["eval/test/acuracy"]))
  assert {record["status"] for record in records} == {"failed"}
  assert "'eval/test/acuracy'" in records[0]["error"] and "eval/test/accuracy" in records[0]["error"]


def test_workdirs_are_flat_and_never_shared(tmp_path):
  spec = dataclasses.replace(SWEEP, seeds=[0], grid={"tokenizer": ["runs/a.model"]})
  assert [workdir.name for *_, workdir in sweep.make_trials(spec, tmp_path)] == ["tiny-tokenizer=runs_a.model-s0"]
  with pytest.raises(ConfigError, match="share the workdir"):
    sweep.make_trials(dataclasses.replace(SWEEP, configs=["configs/tiny.py:smoke", "configs/tiny.py:smoke"]), tmp_path)
  both = dataclasses.replace(spec, configs=["configs/tiny.py", "configs/tiny.py:smoke"], grid={})
  assert [workdir.name for *_, workdir in sweep.make_trials(both, tmp_path)] == ["tiny-s0", "tiny-smoke-s0"]


BAD = {
  "import nosuch": "ModuleNotFoundError",
  "x = 1": "get_sweep",
  "def get_sweep(": "SyntaxError",
  "def get_sweep():\n  return 3": "TypeError",
  "def get_sweep():\n  return dict(configs=['a'], seeds=[0], metrics=['m'], sed=1)": "sed",
  "def get_sweep():\n  return dict(configs=['a'], seeds=3, metrics=['m'])": "seeds=3",
  "def get_sweep():\n  return dict(configs='a.py', seeds=[0], metrics=['m'])": "configs='a.py'",
  "def get_sweep():\n  return dict(configs=['a'], seeds=[0], metrics=['m'], baselines=['b', 'c'])": "1 metrics",
  "def get_sweep():\n  return dict(configs=['a'], seeds=[0], metrics=['m'], grid={'x': 3})": "grid=",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_sweep_file_is_one_line(tmp_path, text):
  (tmp_path / "x.py").write_text(text + "\n")
  with pytest.raises(ConfigError) as error:
    sweep.load_sweep(str(tmp_path / "x.py"))
  assert BAD[text] in str(error.value) and "x.py" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_sweep_file_is_one_line(tmp_path):
  with pytest.raises(ConfigError, match="no such sweep file"):
    sweep.load_sweep(str(tmp_path / "none.py"))


def test_the_sweep_of_the_repository_loads():
  assert sweep.load_sweep("experiments/docstring_module/sweep.py").seeds == [0, 1, 2]


def test_settings_of_the_command_line_are_for_every_trial_but_the_sweeps_own_win(tmp_path):
  trials = sweep.make_trials(SWEEP, tmp_path, [("data_dir", "elsewhere"), ("optimizer.learning_rate", "5")])
  assert {cfg.data_dir for _, _, cfg, _ in trials} == {"elsewhere"}
  assert not any("5.0" in str(cfg.optimizer) for _, _, cfg, _ in trials)
