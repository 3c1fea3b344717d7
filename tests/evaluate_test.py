"""Evaluation of a workdir finds what its run measured, at any checkpoint, also of a tuned model, and writes it down."""

import json

import jax
import pytest

from lm import build, evaluate, train
from lm.config import ConfigError
from tests.conftest import make_run


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_a_workdir_measures_what_its_run_measured(peft, tmp_path):
  base, workdir = tmp_path / "base", tmp_path / "run"
  settings = {"total_steps": 4, "checkpoint_every": 2, "eval_every": 2}
  if peft == "lora":
    train.train(make_run("mlm", total_steps=1), base)
    settings |= {"model": None, "tokenizer": "", "init_from": str(base), "peft": "lora"}
  summary = train.train(make_run("classify", **settings), workdir)
  run = build.load_run(workdir, jax.devices()[:1])
  for which, step in (("last", 4), (2, 2)):
    found = evaluate.evaluate_workdir(run, workdir, which)
    assert (found["step"], found["checkpoint"]) == (step, f"checkpoints/{step}")
    assert found["config_sha256"] == json.loads((workdir / "manifest.json").read_text())["config_sha256"]
    assert json.loads((workdir / "evaluations" / f"{step}.json").read_text()) == found
    assert {"eval/validation/loss", "eval/test/accuracy", "eval/test/macro_f1"} <= found["metrics"].keys()
    history = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = {k: v for line in history if line["step"] == step for k, v in line.items() if k.startswith("eval/")}
    assert {name: found["metrics"][name] for name in measured} == pytest.approx(measured, rel=1e-6)
  assert summary["step"] == 4
  (workdir / "metrics.jsonl").unlink()  # as in a copy that has only what a model needs
  assert evaluate.evaluate_workdir(run, workdir, 2) == found
  with pytest.raises(ConfigError, match="has the steps 2, 4"):
    evaluate.evaluate_workdir(run, workdir, 3)
  assert sorted(path.name for path in (workdir / "evaluations").glob("*.json")) == ["2.json", "4.json"]


def test_another_runs_parameters_are_refused(tmp_path):
  train.train(make_run("classify", total_steps=1), tmp_path)
  with pytest.raises(ConfigError, match="step 1 lacks or has other parameters than the run: .*head_mlm"):
    evaluate.evaluate_workdir(make_run("mlm", total_steps=1), tmp_path)
  with pytest.raises(ConfigError, match="model.causal: False -> True"):
    evaluate.evaluate_workdir(make_run(total_steps=1), tmp_path)
