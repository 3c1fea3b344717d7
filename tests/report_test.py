"""Pictures and tables of runs, and sweeps that skip, keep and compare."""

import json

import pytest

from lm import report, sweep
from lm.config import ConfigError


def make_workdir(path, loss):
  path.mkdir(parents=True)
  entries = [{"step": s, "time": 0.0, "train/loss": loss + 1 / (s + 1), "train/tokens_per_sec": 5.0} for s in range(1, 9)]
  entries.append({"step": 8, "time": 0.0, "eval/validation/loss": loss, "baseline/xz_bits_per_byte": 2.0})
  entries.append({"step": 8, "time": 0.0, "eval/validation/bits_per_byte": loss / 2})
  (path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
  summary = {"status": "finished", "step": 8, "metrics": {"eval/validation/loss": loss}, "params": {"total": 9, "trainable": 9}}
  (path / "summary.json").write_text(json.dumps(summary | {"tokens_per_sec": 5.0, "time": {"train": 3.0}}))


def test_report_draws_every_run_and_one_comparison(tmp_path):
  for name, loss in (("a", 3.0), ("b/c", 2.0)):
    make_workdir(tmp_path / name, loss)
  table = report.compare(tmp_path)
  for picture in ("a/curves.png", "b/c/curves.png", "comparison.png"):
    assert (tmp_path / picture).stat().st_size > 10_000
  assert "| b/c | finished | 8 | 9 | 9 | - | 2.000 |" in table
  assert (tmp_path / "comparison.md").read_text() == table


def test_report_without_runs_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="no run"):
    report.compare(tmp_path)


def summary_of(cfg):
  accuracy = 0.5 + cfg.seed / 10 + (0.2 if "0.001" in str(cfg.optimizer) else 0.0)
  metrics = {"eval/test/accuracy": accuracy, "step0/eval/test/accuracy": 0.1, "baseline/majority": 0.3}
  return {"status": "finished", "metrics": metrics, "time": {}}


SWEEP = {
  "configs": ["configs/tiny.py:smoke"],
  "seeds": [0, 1, 2],
  "metrics": ["eval/test/accuracy"],
  "baselines": ["baseline/majority"],
  "grid": {"optimizer.learning_rate": [0.001, 0.01]},
}


def test_sweep_compares_variants_by_seed(tmp_path):
  trials = sweep.make_trials(SWEEP, tmp_path)
  assert [path.name for *_, path in trials][:2] == ["tiny-learning_rate=0.001-s0", "tiny-learning_rate=0.001-s1"]
  table = sweep.tabulate(sweep.run_sweep(trials, tmp_path, lambda cfg, _: summary_of(cfg)), SWEEP)
  assert "| **tiny-learning_rate=0.001** | 3 | 0.800 ± 0.100 |" in table
  assert "minus tiny-learning_rate=0.01, by seed | 3 | +0.200 ± 0.000 |" in table
  assert "| majority class | | 0.300 |" in table


def test_a_failed_trial_is_kept_and_the_others_run(tmp_path):
  def run_trial(cfg, _):
    if cfg.seed == 1:
      raise ValueError("bad luck")
    return summary_of(cfg)

  records = sweep.run_sweep(sweep.make_trials(SWEEP, tmp_path), tmp_path, run_trial)
  assert [record["status"] for record in records] == ["finished", "failed", "finished"] * 2
  assert "bad luck" in (tmp_path / "sweep.jsonl").read_text()
  assert "0.600" in sweep.tabulate(records, SWEEP)


def test_sweep_files_are_checked(tmp_path):
  with pytest.raises(ConfigError, match="no such"):
    sweep.load_sweep(str(tmp_path / "none.py"))
  (tmp_path / "x.py").write_text("def get_sweep():\n  return dict(configs=[], seeds=[], metrics=[], sed=1)\n")
  with pytest.raises(ConfigError, match="sed"):
    sweep.load_sweep(str(tmp_path / "x.py"))
