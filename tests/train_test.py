"""The promises of the loop: golden first losses, exact resume, one answer however computed, two tasks over one backbone."""

import json
import os

import jax
import numpy as np
import pytest

from lm import checkpoint, evaluate, saved, train, tree
from lm.config import ConfigError
from tests.conftest import LABELS, TEXTS, make_run

DROPOUT = {"name": "bert-tiny", "num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64, "dropout_rate": 0.1}


def losses(workdir):
  """The exact losses of all steps."""
  return np.fromfile(workdir / "losses.f32", "<f4")


def logged(workdir, name):
  """The steps at which a metric was written."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [entry["step"] for entry in lines if name in entry]


@pytest.mark.parametrize("task", ["causal", "mlm"])
def test_first_ten_losses_are_golden(task, tmp_path, golden):
  train.train(make_run(task), tmp_path)
  golden(f"{task}_losses", losses(tmp_path).tolist())


def test_nothing_is_sent_to_a_device_unasked(tmp_path, monkeypatch):
  monkeypatch.setattr(train.sharding, "place", lambda batch, *_: batch)
  with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
    train.train(make_run("causal", total_steps=2), tmp_path)


@pytest.mark.parametrize(("seed", "optimizer"), [(1, "adamw(momentum_dtype=bfloat16)"), (2, "schedule_free")])
def test_interrupted_and_resumed_is_bit_identical(seed, optimizer, tmp_path):
  settings = {"model": DROPOUT, "tokens_per_device": 128, "total_steps": 12, "seed": seed, "optimizer": optimizer}
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  unbroken = train.train(make_run("mlm", **settings), whole)
  calls = iter(range(1, 100))
  where = int(np.random.default_rng(seed).integers(1, 11))
  stopped = train.train(make_run("mlm", **settings), parts, stop=lambda: next(calls) > where)
  assert (stopped["status"], stopped["step"]) == ("interrupted", where)
  with (parts / "losses.f32").open("ab") as file:  # more than the run has, as an interruption of a longer one leaves them
    file.write(b"\0" * 4 * 12)
  with (parts / "metrics.jsonl").open("a") as file:
    file.write('{"step": 12, "time": 0.0, "train/loss": 7.0}\n')
  resumed = train.train(make_run("mlm", **settings), parts)
  assert resumed["status"] == "finished"
  assert losses(parts).tobytes() == losses(whole).tobytes()
  for name in ("loss_sha256", "params_sha256"):
    assert resumed[name] == unbroken[name]
  assert logged(parts, "train/loss") == logged(whole, "train/loss") == list(range(1, 13))
  assert json.loads((whole / "manifest.json").read_text())["accumulation"] == 4


def test_a_second_process_cuts_nothing_of_the_first_one_s(tmp_path, monkeypatch):
  """One that comes while another trains, and one that had read where to start before the other one saved and ended."""
  run, asked = make_run("mlm", total_steps=6), iter([False, False, False, True])
  started = train._find_origin(run, tmp_path, False)

  def second_comes():
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} trains there"):
      train.train(run, tmp_path)
    return next(asked)

  assert train.train(run, tmp_path, second_comes)["step"] == 3
  before = losses(tmp_path).tobytes()
  with monkeypatch.context() as patch, pytest.raises(ConfigError, match="another process trained there meanwhile"):
    patch.setattr(train, "_find_origin", lambda *_: started)
    train.train(run, tmp_path)
  assert losses(tmp_path).tobytes() == before
  assert train.train(run, tmp_path)["status"] == "finished"


def test_an_average_is_what_is_saved_and_evaluated(tmp_path):
  """A rate of 0.9 in six steps: far from the weights that moved, and what every reader of the workdir finds."""
  optimizer = {"name": "adamw", "learning_rate": 3e-2, "warmup_steps": 0}
  run = make_run("mlm", total_steps=6, eval_every=6, optimizer={**optimizer, "ema_rate": 0.9})
  plain = train.train(make_run("mlm", total_steps=6, eval_every=6, optimizer=optimizer), tmp_path / "plain")
  summary = train.train(run, tmp_path / "average")
  state = checkpoint.restore(tmp_path / "average/checkpoints/6", run.program.abstract_sharded, True)
  assert tree.sha256(state.average["moving"]) == plain["params_sha256"] != summary["params_sha256"]
  assert summary["loss_sha256"] == plain["loss_sha256"]
  _, read = saved.load_params(tmp_path / "average")
  assert tree.sha256(tree.unflatten(read)) == summary["params_sha256"]
  again = evaluate.evaluate_workdir(run, tmp_path / "average")["metrics"]
  for name, value in again.items():
    assert summary["metrics"][name] == pytest.approx(value, rel=1e-6)
    assert not name.endswith("/loss") or abs(plain["metrics"][name] - value) > 1e-3


def test_a_stop_button_in_the_middle_of_a_step_saves_and_loses_nothing(tmp_path, monkeypatch):
  unbroken = train.train(make_run(total_steps=6), tmp_path / "whole")
  calls, device_get = iter(range(1000)), jax.device_get

  def pressed(value):
    if next(calls) == 7:  # while the metrics of a step are read; evaluations come before
      raise KeyboardInterrupt
    return device_get(value)

  monkeypatch.setattr(jax, "device_get", pressed)
  stopped = train.train(make_run(total_steps=6, eval_every=6), tmp_path / "parts")
  monkeypatch.undo()
  assert stopped["status"] == "interrupted" and 0 < stopped["step"] < 6
  assert len(losses(tmp_path / "parts")) == stopped["step"]
  resumed = train.train(make_run(total_steps=6, eval_every=6), tmp_path / "parts")
  assert (resumed["loss_sha256"], resumed["params_sha256"]) == (unbroken["loss_sha256"], unbroken["params_sha256"])


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
  train.train(make_run(total_steps=2), tmp_path)
  before = (tmp_path / "metrics.jsonl").read_bytes()
  assert train.train(make_run(total_steps=2), tmp_path)["status"] == "finished"
  assert "nothing to do" in capsys.readouterr().out
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
  ("devices", "settings"),
  [
    (8, {}),
    (1, {"tokens_per_device": 64}),
    (1, {"loss_chunk": 16}),
    (1, {"remat": "block"}),
  ],
  ids=["data-8", "accumulate-8", "chunked-loss", "remat"],
)
def test_losses_agree_however_they_are_computed(devices, settings, tmp_path):
  model = {**DROPOUT, "name": "gpt2-tiny"}
  train.train(make_run(model=model), tmp_path / "one")
  train.train(make_run(model=model, devices=devices, **settings), tmp_path / "other")
  np.testing.assert_allclose(losses(tmp_path / "other"), losses(tmp_path / "one"), rtol=0, atol=1e-5)


def test_a_step_of_an_undeclared_shape_is_an_error():
  run = make_run()
  run.program.compile(run.loader.shapes(), [])
  batch = run.loader.batch(0)
  short = {part: {name: x[:4] for name, x in arrays.items()} for part, arrays in batch.items()}
  with pytest.raises(RuntimeError, match="not declared"):
    run.program.train(run.init_state(), short, run.noise_rng)


def test_two_tasks_with_two_heads_train_in_one_run(tmp_path):
  labelled = {"name": "memory", "texts": TEXTS, "text_labels": LABELS}
  streams = {
    "docs": {"task": "mlm", "data": {"name": "memory", "texts": TEXTS}, "weight": 3.0},
    "kind": {"task": "classify(pooling=mean)", "data": labelled, "weight": 1.0},
  }
  fast = {"name": "adamw", "learning_rate": 1e-2}
  run = make_run("mlm", task=None, data=None, streams=streams, total_steps=60, optimizer=fast)
  summary = train.train(run, tmp_path)
  metrics = summary["metrics"]
  assert {"train/docs/loss", "train/kind/loss", "eval/docs_validation/loss", "eval/kind_validation/macro_f1"} <= metrics.keys()
  assert metrics["eval/kind_validation/loss"] < metrics["step0/eval/kind_validation/loss"] - 0.01
  assert metrics["eval/docs_validation/loss"] < metrics["step0/eval/docs_validation/loss"]


def test_seeds_share_one_executable():
  assert make_run(seed=1).program is make_run(seed=2).program
  assert make_run(seed=1).program is not make_run(seed=1, total_steps=11).program


def test_summary_has_the_names_that_tools_read(tmp_path, capsys):
  summary = train.train(make_run(total_steps=4), tmp_path)
  expected = {"status", "step", "metrics", "best", "params", "tokens", "tokens_per_sec", "peak_memory_bytes", "time"}
  assert expected | {"loss_sha256", "params_sha256"} == summary.keys()
  assert summary["time"].keys() == {"start-up", "compile", "train", "eval", "checkpoint", "data wait"}
  assert {"eval/validation/loss", "eval/validation/bits_per_byte"} <= summary["metrics"].keys()
  assert summary["params"]["total"] == summary["params"]["trainable"] > 0
  waited = summary["time"]["data wait"] / (summary["time"]["train"] + summary["time"]["data wait"])
  assert f"{waited:.2%} of the time of steps was waiting for data" in capsys.readouterr().err


def test_fine_tuning_starts_from_the_base_and_keeps_it_frozen(tmp_path):
  base, tuned = tmp_path / "base", tmp_path / "tuned"
  train.train(make_run("mlm", total_steps=3), base)
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "peft": "lora", "total_steps": 5}
  summary = train.train(make_run("classify", **settings), tuned)
  assert summary["params"]["trainable"] < summary["params"]["total"] / 2
  _, before = saved.load_params(base)
  _, after = saved.load_params(tuned)
  assert (before["backbone/embed/embedding"] == after["backbone/embed/embedding"]).all()
  query = "backbone/blocks/attention/query/kernel"
  assert (before[query] != after[query]).any()  # merged
  assert not [name for name in after if "/lora/" in name]


def test_the_test_split_is_measured_before_the_first_step_and_after_the_last_only(tmp_path):
  train.train(make_run("classify", total_steps=4, eval_every=1), tmp_path)
  assert logged(tmp_path, "eval/validation/loss") == [0, 1, 2, 3, 4]
  assert logged(tmp_path, "eval/test/loss") == [0, 4]


def test_a_base_that_changed_since_the_run_started_is_refused(tmp_path):
  base, tuned = tmp_path / "base", tmp_path / "tuned"
  train.train(make_run("mlm", total_steps=1), base)
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "peft": "lora", "total_steps": 3}
  calls = iter(range(9))
  train.train(make_run("classify", **settings), tuned, stop=lambda: next(calls) > 0)
  train.train(make_run("mlm", total_steps=2), base, accept_changes=True)
  with pytest.raises(ConfigError, match="its parameters changed since this run started"):
    train.train(make_run("classify", **settings), tuned)


def test_parameters_and_moments_are_split_over_fsdp_and_tensor():
  run = make_run(devices=8, mesh={"data": 2, "fsdp": 2, "tensor": 2})
  state = run.init_state()
  share = lambda leaf: leaf.size / leaf.addressable_shards[0].data.size
  of_params, of_moments = (sorted(map(share, jax.tree.leaves(part))) for part in (state.params, state.opt_state))
  assert of_moments == sorted([1, 1, *of_params, *of_params])  # two counters and two moments
  for name, leaf in tree.flatten(state.params["backbone"]["blocks"]).items():
    assert share(leaf) == (4 if name.endswith("/kernel") else 1), name


def test_data_seed_and_init_seed_stand_for_the_seed_where_they_are_set():
  tokens = lambda **seeds: make_run(**seeds).loader.batch(0)["inputs"]["tokens"].tolist()
  params = lambda **seeds: tree.sha256(make_run(**seeds).init_state().params)
  assert tokens(seed=1, data_seed=7) == tokens(seed=2, data_seed=7) == tokens(seed=7) != tokens(seed=1)
  assert params(seed=1, init_seed=7) == params(seed=2, init_seed=7) == params(seed=7) != params(seed=1)


def test_a_run_that_has_gone_further_than_it_should_is_one_line(tmp_path):
  asked = iter([False, False, False, True])
  assert train.train(make_run("classify", total_steps=6), tmp_path, lambda: next(asked))["status"] == "interrupted"
  with pytest.raises(ConfigError, match="config.total_steps=2: .* has trained for 3 steps already"):
    train.train(make_run("classify", total_steps=2), tmp_path, accept_changes=True)
