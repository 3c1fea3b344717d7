"""What a workdir keeps, and when another run may go on in it: resumed, extended, branched, changed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lm import build, checkpoint, device, evaluate, plug, record, saved, train
from lm.config import ConfigError
from tests.conftest import make_config, make_run

CONSTANT = {"name": "adamw", "learning_rate": 3e-3, "schedule": "constant", "warmup_steps": 1}


def losses(workdir):
  return np.fromfile(workdir / "losses.f32", "<f4")


def test_another_machine_is_said_in_one_line(tmp_path, capsys, monkeypatch):
  run = make_run()
  record.prepare(run, tmp_path, 0)
  record.prepare(run, tmp_path, 3)
  assert capsys.readouterr().err == ""
  cores = device.num_cores()
  monkeypatch.setattr(device, "num_cores", lambda: cores + 2)
  manifest = record.prepare(run, tmp_path, 3)
  assert capsys.readouterr().err == f"cores: {cores} -> {cores + 2}; losses will agree closely but not to the bit\n"
  assert manifest["cores"] == cores + 2


def test_an_execution_setting_may_change_and_is_kept(tmp_path):
  record.prepare(make_run(), tmp_path, 0)
  record.check(make_config(log_every=7), tmp_path)
  record.prepare(make_run(log_every=7), tmp_path, 5)
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert manifest["changes"] == [{"step": 5, "name": "log_every", "before": 1, "now": 7}]


def test_another_identity_names_the_change_and_the_ways_out(tmp_path):
  record.prepare(make_run(), tmp_path, 0)
  with pytest.raises(ConfigError) as error:
    record.check(make_config(seq_len=32, total_steps=20), tmp_path)
  line = str(error.value)
  assert "total_steps: 10 -> 20" in line and "seq_len: 64 -> 32" in line
  assert "--config.init_from=" in line and "--accept_changes" in line and "\n" not in line
  record.check(make_config(seq_len=32), tmp_path, accept_changes=True)


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"peft": "lroa"}, "peft 'lroa': unknown; did you mean 'lora'"),
    ({"optimizer": "adamw(learning_rat=1)"}, "no option 'learning_rat'; did you mean 'learning_rate'"),
    ({"optimizer": "adamw(schedule=cosin)"}, "optimizer.schedule='cosin': accepted are constant, linear, cosine"),
    ({"model": "gpt2-tiny(norm=rmsnrom)"}, "model.norm='rmsnrom': accepted are layernorm, rmsnorm"),
    ({"data": "table(path=missing.csv)"}, "data.path='missing.csv': no such file"),
    ({"task": "causl"}, "task 'causl': unknown; did you mean 'causal'"),
  ],
)
def test_a_slip_in_the_command_of_a_workdir_is_said_as_such(settings, words, tmp_path):
  record.prepare(make_run(), tmp_path, 0)
  with pytest.raises(ValueError, match=words):
    record.check(make_config(**settings), tmp_path)


def test_accepted_changes_go_on_from_the_checkpoint(tmp_path):
  train.train(make_run(total_steps=4), tmp_path)
  summary = train.train(make_run(total_steps=6, batch_size=4), tmp_path, accept_changes=True)
  assert (summary["status"], summary["step"], len(losses(tmp_path))) == ("finished", 6, 6)
  changes = json.loads((tmp_path / "manifest.json").read_text())["changes"]
  assert {(change["step"], change["name"]) for change in changes} == {(4, "total_steps"), (4, "batch_size")}


def test_more_steps_are_taken_where_the_schedule_so_far_is_the_same(tmp_path):
  settings = {"optimizer": CONSTANT}
  short, whole = tmp_path / "short", tmp_path / "whole"
  train.train(make_run(total_steps=4, **settings), short)
  extended = train.train(make_run(total_steps=8, **settings), short)
  unbroken = train.train(make_run(total_steps=8, **settings), whole)
  assert extended["params_sha256"] == unbroken["params_sha256"]
  assert losses(short).tobytes() == losses(whole).tobytes()
  with pytest.raises(ConfigError, match="total_steps: 8 -> 6"):
    record.check_schedule(make_run(total_steps=6, **settings), whole, 8)


def test_more_steps_are_refused_where_they_change_what_was(tmp_path):
  train.train(make_run(total_steps=4), tmp_path)  # cosine to the end
  before = losses(tmp_path).tobytes()
  causes = r"optimizer.schedule='cosine' and optimizer.warmup_steps='2%'"
  refused = f"4 -> 8 changes the learning rates of the 4 steps taken, because of {causes}"
  with pytest.raises(ConfigError, match=refused) as error:
    train.train(make_run(total_steps=8), tmp_path)
  assert f"--config.resume_from={tmp_path} to go on from its state" in str(error.value) and "\n" not in str(error.value)
  assert losses(tmp_path).tobytes() == before


def test_resume_from_branches_off_another_run(tmp_path):
  trunk, branch, whole = tmp_path / "trunk", tmp_path / "branch", tmp_path / "whole"
  settings = {"optimizer": CONSTANT}
  train.train(make_run(total_steps=3, **settings), trunk)
  before = {p.name: p.read_bytes() for p in trunk.iterdir() if p.is_file()}
  branched = train.train(make_run(total_steps=6, resume_from=str(trunk), **settings), branch)
  unbroken = train.train(make_run(total_steps=6, **settings), whole)
  for name in ("loss_sha256", "params_sha256", "tokens"):
    assert branched[name] == unbroken[name]
  assert {p.name: p.read_bytes() for p in trunk.iterdir() if p.is_file()} == before
  with pytest.raises(ConfigError, match="needs a checkpoint before config.total_steps=3; it has 2, 3"):
    train.train(make_run(total_steps=3, resume_from=str(trunk), **settings), tmp_path / "late")


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, monkeypatch):
  values = iter([9.0, float("nan"), 1.0, 5.0, 6.0, 7.0, 8.0])
  monkeypatch.setattr(evaluate, "evaluate", lambda *_, **__: {"eval/validation/loss": next(values)})
  settings = {"total_steps": 6, "eval_every": 1, "checkpoint_every": 1, "keep_checkpoints": 2}
  train.train(make_run(**settings), tmp_path)
  assert checkpoint.steps(tmp_path / "checkpoints") == [2, 5, 6]
  assert checkpoint.read_best(tmp_path / "checkpoints") == {"step": 2, "metric": "eval/validation/loss", "value": 1.0}


def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(tmp_path, monkeypatch):
  settings = {"total_steps": 5, "eval_every": 2, "checkpoint_every": 2}
  calls, measure = iter(range(9)), evaluate.evaluate

  def killed(*args, **kwargs):
    if next(calls) == 1:  # after step 2 was saved
      raise ConnectionError
    return measure(*args, **kwargs)

  monkeypatch.setattr(evaluate, "evaluate", killed)
  with pytest.raises(ConnectionError):
    train.train(make_run(**settings), tmp_path)
  train.train(make_run(**settings), tmp_path)
  assert [step for step in range(6) if record.History(tmp_path).evaluated(step)] == [0, 2, 4, 5]


@pytest.mark.parametrize("metric", ["eval/test/loss", "loss", "eval/validation/f1"])
def test_a_best_metric_that_is_not_measured_is_named(metric, tmp_path):
  with pytest.raises(ConfigError, match=f"config.best_metric='{metric}'"):
    train.train(make_run(best_metric=metric, total_steps=2), tmp_path)


def test_a_resumed_run_counts_all_its_tokens_and_seconds(tmp_path):
  calls = iter(range(100))
  first = train.train(make_run(total_steps=6), tmp_path, stop=lambda: next(calls) >= 3)
  second = train.train(make_run(total_steps=6), tmp_path)
  assert 0 < first["tokens"] < second["tokens"]
  batches = [make_run(total_steps=6).loader.batch(step)["inputs"]["segment_ids"] for step in range(6)]
  assert second["tokens"] == sum(int((batch > 0).sum()) for batch in batches)
  assert second["time"]["train"] > first["time"]["train"] > 0


def test_parameters_are_those_of_the_newest_checkpoint(tmp_path):
  train.train(make_run(total_steps=2), tmp_path)
  assert saved.load_params(tmp_path)[0] == 2


def test_other_data_under_the_same_settings_are_refused(tmp_path):
  texts, workdir = tmp_path / "x.txt", tmp_path / "run"
  texts.write_text("one text\nand another one\n" * 8)
  data = {"name": "text", "path": str(texts), "validation": str(texts)}
  train.train(make_run(data=data, total_steps=2), workdir)
  texts.write_text("one text\nand another one\n" * 9)
  for go_on in (lambda run: train.train(run, workdir), lambda run: evaluate.evaluate_workdir(run, workdir)):
    with pytest.raises(ConfigError, match=r"data 'causal': not what the run in .* was trained on"):
      go_on(make_run(data=data, total_steps=2))
  train.train(make_run(data=data, total_steps=3), workdir, accept_changes=True)
  changes = json.loads((workdir / "manifest.json").read_text())["changes"]
  assert {change["name"] for change in changes} == {"total_steps", "data causal"}


def test_a_tuned_run_is_not_read_over_another_base(tmp_path):
  base, tuned = tmp_path / "base", tmp_path / "tuned"
  train.train(make_run("mlm", total_steps=1), base)
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "peft": "lora", "total_steps": 1}
  train.train(make_run("classify", **settings), tuned)
  saved.load_params(tuned)
  shutil.rmtree(base)
  train.train(make_run("mlm", total_steps=1, seed=5), base)
  with pytest.raises(ConfigError, match=r"config.init_from=.* of .*tuned: its parameters changed since that run started"):
    saved.load_params(tuned)


def test_resume_from_says_what_is_other_and_refuses_what_does_not_fit(tmp_path, capsys):
  train.train(make_run(total_steps=2, optimizer=CONSTANT), tmp_path / "trunk")
  settings = {"resume_from": str(tmp_path / "trunk"), "total_steps": 3}
  with pytest.raises(ConfigError, match=r"has another optimizer.name, so its state does not fit; use init_from"):
    train.train(make_run(optimizer="muon", **settings), tmp_path / "a")
  train.train(make_run(optimizer=CONSTANT, batch_size=4, **settings), tmp_path / "b")
  assert "(resume_from; other than there: batch_size)" in capsys.readouterr().err


def tune(folder, monkeypatch, **settings):
  """The workdir of a classifier tuned from one at the relative path "base"; the working directory is the folder."""
  monkeypatch.chdir(folder)
  train.train(make_run("mlm", total_steps=1), folder / "base")
  settings = {"model": None, "tokenizer": "", "init_from": "base", "total_steps": 2} | settings
  train.train(make_run("classify", **settings), folder / "tuned")
  return folder / "tuned"


def other_preset(monkeypatch, **changes):
  """The preset of the tests' encoder with other fields, as a later version of this code may have it."""
  presets = {name: (dataclasses.replace(value, **changes), family) for name, (value, family) in plug._presets().items()}
  monkeypatch.setattr(plug, "_presets", lambda: presets)


def test_a_run_of_full_parameters_needs_neither_base_nor_preset(tmp_path, monkeypatch):
  workdir = tune(tmp_path, monkeypatch)
  before, measured = saved.load_model(workdir)[0], evaluate.evaluate_workdir(build.load_run(workdir), workdir)["metrics"]
  shutil.rmtree("base")
  monkeypatch.setattr(plug, "_presets", dict)
  assert saved.load_model(workdir)[0] == before
  run = build.load_run(workdir)
  assert evaluate.evaluate_workdir(run, workdir)["metrics"] == measured
  with pytest.raises(ConfigError, match="loaded without its base, to evaluate it; build.make_run"):
    train.train(run, tmp_path / "new")
  monkeypatch.undo()
  monkeypatch.chdir(tmp_path)
  again = {"model": None, "tokenizer": "", "init_from": "tuned", "total_steps": 1}
  assert make_run("classify", **again).program.spec.model.cfg == before.cfg


def test_a_tuned_run_finds_its_base_where_it_was_and_at_the_path_that_was_given(tmp_path, monkeypatch):
  workdir = tune(tmp_path, monkeypatch, peft="lora")
  assert record.load_config(workdir).init_from == "base"
  assert record.read_manifest(workdir)["base"]["workdir"] == str(tmp_path / "base")
  _, before = saved.load_params(workdir)
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  for move in (lambda: None, lambda: shutil.move(tmp_path / "base", "base")):
    move()
    assert build.load_run(workdir).base.workdir.resolve() == record.find_base(workdir).resolve()
    _, after = saved.load_params(workdir)
    assert all((after[name] == value).all() for name, value in before.items())
  shutil.rmtree("base")
  with pytest.raises(ConfigError, match=r"its base is neither at /.*/base nor at base \(config.init_from\)"):
    saved.load_params(workdir)


def test_a_preset_that_changed_is_refused_like_another_setting(tmp_path, monkeypatch, capsys):
  answers = iter([False, True])
  train.train(make_run(total_steps=3), tmp_path / "run", stop=lambda: next(answers))
  other_preset(monkeypatch, rope_base=500.0)
  with pytest.raises(ConfigError, match=r"belongs to another config \(model.rope_base: 10000.0 -> 500.0\).*--accept_changes"):
    train.train(make_run(total_steps=3), tmp_path / "run")
  branch = {"resume_from": str(tmp_path / "run"), "total_steps": 3}
  with pytest.raises(ConfigError, match="has another model.rope_base, so its state does not fit"):
    train.train(make_run(**branch), tmp_path / "branch")
  train.train(make_run(total_steps=3), tmp_path / "run", accept_changes=True)
  manifest = record.read_manifest(tmp_path / "run")
  assert manifest["changes"] == [{"step": 1, "name": "model.rope_base", "before": 10000.0, "now": 500.0}]
  assert manifest["architecture"]["rope_base"] == 500.0


def test_an_architecture_of_another_version_is_one_line(tmp_path):
  record.prepare(make_run(), tmp_path, 0)
  manifest = record.read_manifest(tmp_path)
  assert record.read_architecture(tmp_path) == make_run().program.spec.model.cfg
  for architecture, words in (({}, "no architecture"), ({"spin": 1}, "the unknown field architecture.spin")):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"architecture": architecture}))
    with pytest.raises(ConfigError, match=f"manifest.json has {words}; it is of another version of lm"):
      record.read_architecture(tmp_path)
