"""The stopwatch measures what it says, and its command line is one line of JSON."""

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from lm import chips
from lm.bench import accelerator, checkpoint, startup, step, turns, use
from lm.bench import data as bench
from lm.config import ConfigError, Plug
from lm.shapes import INPUTS
from tests.conftest import TEXTS, make_run

FIGURES = {
  "batch_tokens_per_sec",
  "batch_tokens_per_cpu_sec",
  "tokenize_tokens_per_sec",
  "tokenize_bytes_per_sec",
  "train_tokenizer_bytes_per_sec",
}


def test_figures_of_a_small_corpus():
  source = Plug("memory", (("texts", tuple(f"{text} {i}" for i in range(40) for text in TEXTS)),))
  found = bench.measure_data(bench.DataBench(source, vocab_size=300, seq_len=64, batch_size=4, seconds=0.05))
  assert found.keys() >= FIGURES
  assert all(found[name] > 0 for name in FIGURES)
  assert 0 <= found["padding"] < 0.5
  assert 0 < found["store_open_seconds"] < 1
  assert json.loads(json.dumps(found))["data"]["name"] == "memory"


def test_rates_are_real_tokens_over_seconds(monkeypatch):
  class Halves:
    def batch(self, step):
      return {INPUTS: {"segment_ids": np.repeat([[1, 0]], 50, axis=0)}}

  ticks = itertools.count()
  monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(ticks)))
  monkeypatch.setattr(bench.time, "process_time", lambda: next(ticks) / 2)
  found = bench._measure_batches(Halves(), 4.0)  # starts at ticks 0 and 1, batches at 2 and 3, the end at 4 and 5
  assert found == {"batch_tokens_per_sec": 100 // 4, "batch_tokens_per_cpu_sec": 100 // 2, "padding": 0.5}


def test_bad_settings_are_one_line():
  with pytest.raises(ConfigError, match=r"seconds=0\.0: must be above 0"):
    bench.DataBench(seconds=0.0)
  command = [sys.executable, "-m", "tools.bench", "data", "--data=pydoc"]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 2
  assert ended.stderr.startswith("error: data 'pydoc': unknown; did you mean 'pydocs'? There are: ")


def test_sides_take_turns_and_who_begins_changes():
  called = []

  def side(name):
    return lambda number: called.append((name, number)) or float(number)

  assert turns.take_turns([side("a"), side("b")], 2) == [[0.0, 1.0], [0.0, 1.0]]
  assert called == [("a", -1), ("b", -1), ("b", 0), ("a", 0), ("a", 1), ("b", 1)]


def test_figures_are_medians_of_rounds():
  found = turns.figures([1.0, 2.0, 4.0], tokens=[10, 10, 80])
  assert found == {"seconds": 2.0, "spread": 0.75, "tokens_per_sec": 10.0}
  assert turns.ratios([1.0, 2.0, 1.0], [2.0, 2.0, 3.0]) == {"ratio": 2.0, "ratios": [2.0, 1.0, 3.0]}


def test_a_train_step_by_itself():
  run = make_run("classify", length_buckets=(58, 64))
  assert [run.loader.batch(i)["inputs"]["tokens"].shape[1] for i in run.loader.first_steps()] == [58, 64]
  found = step.measure(run, rounds=2, steps=3, with_peer=False)
  assert found["rows_per_sec"] == pytest.approx(8 / found["step_seconds"], rel=0.5)
  assert found["tokens_per_sec"] > found["rows_per_sec"]
  assert found["trainable"] == run.program.num_params["trainable"]
  assert "peer" not in found


def test_a_model_in_use_by_itself():
  run = make_run("causal")
  assert use.measure_generation(run, 1, 4, 2, with_peer=False)["tokens_per_sec"] > 0
  assert use.measure_encoding(run, 1, 4, 2, with_peer=False)["texts_per_sec"] > 0
  with pytest.raises(ConfigError, match="--tokens=1000: behind prompts of 32, and the model takes 128"):
    use.measure_generation(run, 1, 1000, 2, with_peer=False)
  with pytest.raises(ConfigError, match="generate: needs an autoregressive task"):
    use.measure_generation(make_run("mlm"), 1, 4, 2, with_peer=False)


def test_an_accelerator_at_small_sizes(monkeypatch):
  """A case of each kind as it is but for its sizes; one that fails does not take the others with it."""
  small = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "ffn_dim": 32, "vocab_size": 272}
  options = {"num_kv_heads": 0, "head_dim": 0}

  def shrink(case):
    model = case.settings["model"]
    model = dict(model) if isinstance(model, dict) else {"name": model}
    theirs = options if model["name"].startswith(("llama", "qwen")) else {}
    settings = case.settings | {"model": model | small | theirs, "seq_len": 64, "batch_size": 2}
    return dataclasses.replace(case, settings=settings, new_tokens=4, prompts=min(case.prompts, 2))

  cases = {name: shrink(accelerator.CASES[name]) for name in ("bert_base", "lora_3b", "write_1.5b_64")}
  cases["broken"] = accelerator.Case({"model": "gpt2", "task": "no_such_task"})
  monkeypatch.setattr(accelerator.chips, "find", lambda kind: chips.Chip(1e12, hbm_bytes_per_sec=1e12))
  found = accelerator.measure(cases, rounds=1, steps=1)
  assert found.keys() == cases.keys() and "no_such_task" in found["broken"]["error"]
  assert {name: each["error"] for name, each in found.items() if "error" in each}.keys() == {"broken"}
  for name in ("bert_base", "lora_3b", "write_1.5b_64"):
    assert found[name]["floor"] == accelerator.CASES[name].floor and found[name][cases[name].unit] > 0
  run = make_run("causal")
  weights, cfg = 4 * run.program.num_params["total"], run.program.spec.model.cfg
  of_a_token = 4 * 2 * cfg.num_layers * cfg.kv_heads * cfg.channels
  read = accelerator._bytes_read(accelerator.Case({}, prompts=3, new_tokens=10), run)
  assert read == weights + 3 * of_a_token * (run.config.seq_len // 2 + 5)


def test_a_checkpoint_is_as_large_as_the_state(tmp_path):
  run = make_run("causal")
  found = checkpoint.measure(run, 1, str(tmp_path))
  # Parameters and two moments, compressed.
  assert found["bytes"] > 0.8 * 3 * 4 * run.program.num_params["total"]
  assert found["restore"]["bytes_per_sec"] > 0
  assert not list(tmp_path.iterdir())


def test_a_start_is_until_the_first_step_is_said():
  found = startup.measure("configs/tiny.py:smoke", [], rounds=1)
  assert 0 < found["help"]["seconds"] < found["first_step"]["seconds"]
  assert found["config_error"]["seconds"] < found["first_step"]["seconds"]
  with pytest.raises(ConfigError, match="ended before its first step: error: config.tokenizer='none.model'"):
    startup.measure("configs/tiny.py:smoke", ["--config.tokenizer=none.model"], rounds=1)


def test_children_of_the_stopwatch_start_as_a_user_s_do(monkeypatch):
  monkeypatch.setenv("LM_RESTARTED", "1")
  monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  assert not {"LM_RESTARTED", "GLIBC_TUNABLES"} & startup._environment().keys()
  monkeypatch.delenv("LM_RESTARTED")
  assert "GLIBC_TUNABLES" in startup._environment()


def test_what_goes_wrong_on_the_other_side_is_one_line():
  with turns.Other() as other:
    assert other.ask(divmod, 7, 2) == (3, 1)
    with pytest.raises(ConfigError, match="peer: FileNotFoundError: .*no such file"):
      other.ask(open, "no such file")
    with pytest.raises(ConfigError, match="peer: BrokenProcessPool"):
      other.ask(os._exit, 1)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["train", "--config=configs/tiny.py", "--steps=0"], "--steps=0: must be at least 1"),
    (["finetune", "--config=configs/finetune.py", "--x=1"], "--x=1: expected --config.NAME=VALUE"),
    (["checkpoint", "--config=configs/tiny.py", "--config.batch_sise=1"], "batch_sise"),
  ],
)
def test_flags_that_are_no_settings_are_one_line(arguments, words):
  ended = subprocess.run([sys.executable, "-m", "tools.bench", *arguments], capture_output=True, text=True)
  assert (ended.returncode, ended.stdout) == (2, "")
  assert re.match(rf"error: .*{re.escape(words)}", ended.stderr) and ended.stderr.count("\n") == 1
