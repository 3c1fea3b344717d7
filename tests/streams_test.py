"""Runs of several streams: each one's loss is known apart, also where they share a task, and what that costs is nothing."""

import json

import jax
import numpy as np
import pytest

from lm import sharding, train
from lm.config import ConfigError
from tests.conftest import LABELS, TEXTS, make_run

RARE = {"total_steps": 12, "log_every": 5, "evaluators": {"rare": {"name": "likelihood", "stream": "rare"}}}


def texts(part):
  return {"name": "memory", "texts": part}


def streams(rare=0.1):
  """Two of one task, of which one is rare."""
  return {
    "often": {"task": "mlm", "data": texts(TEXTS[::2]), "weight": 1.0},
    "rare": {"task": "mlm", "data": texts(TEXTS[1::2]), "weight": rare},
  }


def make(**settings):
  return make_run("mlm", task=None, data=None, **{"streams": streams(), **settings})


def lines(workdir):
  """metrics.jsonl without evaluations and what a clock decides."""
  found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  timed = ("time", "train/tokens_per_sec", "train/data_wait")
  return [{k: v for k, v in entry.items() if k not in timed} for entry in found if "train/loss" in entry]


def test_streams_of_one_task_have_losses_of_their_own():
  kind = {"task": "classify", "data": {**texts(TEXTS), "text_labels": LABELS}, "weight": 0.5}
  run = make(streams=streams(rare=0.7) | {"kind": kind})
  batch, of_row = run.loader.batch(0), run.loader.streams_of(0)
  assert sorted(set(of_row)) == [0, 1, 2]  # by name: kind, often, rare
  objective, state = run.program.spec.objective, run.init_state()
  sums, weights = objective.sums(state.params, batch), objective.denominators(batch)
  assert {name.split("/")[0] for name in sums} == {"kind", "often", "rare", "often+rare"}
  for number, (stream, key) in enumerate((("kind", "kind"), ("often", "often"), ("rare", "often"))):
    mine = {part: {name: x[of_row == number] for name, x in arrays.items()} for part, arrays in batch.items()}
    alone = objective.only(key)
    for name, value in alone.sums(state.params, mine).items():
      other = f"{stream}/{name.split('/')[1]}"
      assert sums[other] == pytest.approx(float(value), rel=1e-5), other
      assert weights[other] == alone.denominators(mine)[name] > 0
  for name in ("loss", "accuracy"):
    assert sums[f"often+rare/{name}"] == sums[f"often/{name}"] + sums[f"rare/{name}"]


def test_telling_streams_apart_takes_no_second_pass():
  def num_flops(*names):
    run = make(streams={name: streams()[name] for name in names})
    objective = run.program.spec.objective
    assert len(objective.streams) == len(names) - 1
    [loss] = objective.coefficients
    gradient = jax.jit(jax.grad(lambda params, batch: objective.sums(params, batch)[loss]))
    with sharding.use(run.mesh):
      return gradient.lower(run.program.abstract.params, run.loader.batch(0)).compile().cost_analysis()["flops"]

  assert num_flops("often", "rare") < 1.02 * num_flops("often")


def test_losses_of_streams_are_means_since_the_last_line_also_when_resumed_or_accumulated(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train.train(make(**RARE, tokens_per_device=128), whole)
  calls = iter(range(100))
  train.train(make(**RARE, tokens_per_device=128), parts, stop=lambda: next(calls) == 7)
  summary = train.train(make(**RARE, tokens_per_device=128), parts)
  found = lines(whole)
  assert lines(parts) == found
  assert [entry["step"] for entry in found] == [5, 10, 12]
  assert all("train/rare/loss" in entry for entry in found[:2])
  tokens = [sum(entry[f"train/{stream}/tokens"] for stream in ("often", "rare")) for entry in found]
  assert tokens == sorted(tokens)
  assert tokens[-1] == summary["tokens"]
  train.train(make(**RARE), tmp_path / "at once")
  for at_once, accumulated in zip(lines(tmp_path / "at once"), found, strict=True):
    assert at_once == pytest.approx(accumulated, rel=1e-4)


def test_weights_of_stages_serve_the_streams_they_name(tmp_path):
  staged = {"weight": ((0, 1), ("50%", 0))}
  both = streams(rare=((0, 0), (4, 1)))
  run = make(streams={**both, "often": both["often"] | staged}, total_steps=8)
  assert [set(run.loader.streams_of(step).tolist()) for step in range(8)] == [{0}] * 4 + [{1}] * 4
  train.train(run, tmp_path)
  found = {name: [entry["step"] for entry in lines(tmp_path) if f"train/{name}/loss" in entry] for name in ("often", "rare")}
  assert found == {"often": [1, 2, 3, 4], "rare": [5, 6, 7, 8]}
  assert np.isfinite([entry["train/loss"] for entry in lines(tmp_path)]).all()


@pytest.mark.parametrize(("start", "message"), [("50%", "changes config.streams.rare.weight of the 8 steps taken"), (4, "")])
def test_a_longer_run_keeps_the_weights_of_the_steps_taken(start, message, tmp_path):
  settings = {
    "streams": streams(rare=((0, 1), (start, 2))),
    "optimizer": {"name": "adamw", "schedule": "constant", "warmup_steps": 0},
  }
  train.train(make(total_steps=8, **settings), tmp_path)
  if not message:
    assert train.train(make(total_steps=10, **settings), tmp_path)["step"] == 10
    return
  with pytest.raises(ConfigError, match=message):
    train.train(make(total_steps=10, **settings), tmp_path)
