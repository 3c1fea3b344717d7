"""The step on its own: a float16 step that overflows changes nothing but the scale of the loss."""

import jax
import numpy as np
import pytest

from lm import step, train, tree
from tests.conftest import make_run


@pytest.fixture
def huge_scale(monkeypatch):
  monkeypatch.setattr(step, "FIRST_LOSS_SCALE", 2.0**22)


def test_an_overflow_skips_the_step_and_halves_the_scale(huge_scale):
  run = make_run(dtype="float16", seed=3, total_steps=40)
  run.program.compile(run.loader.shapes(), [])
  state = run.init_state()
  skipped = 0
  for number in range(12):
    before = jax.device_get((state.params, state.opt_state, state.loss_scale))
    state, result = run.program.train(state, run.loader.batch(number), run.noise_rng)
    after = jax.device_get((state.params, state.opt_state, state.loss_scale))
    moved = any((a != b).any() for a, b in zip(jax.tree.leaves(before[:2]), jax.tree.leaves(after[:2]), strict=True))
    finite = bool(np.isfinite(result["grad_norm"]))
    skipped += not finite
    assert moved == finite
    assert after[2]["scale"] == before[2]["scale"] / (1 if finite else 2)
    assert after[2]["skipped"] == skipped
  assert 0 < skipped < 12
  assert int(state.step) == 12


def test_float16_learns_what_float32_learns(tmp_path):
  settings = {"total_steps": 30, "eval_every": 30}
  half, single = (train.train(make_run(dtype=t, **settings), tmp_path / t)["metrics"] for t in ("float16", "float32"))
  assert half["eval/validation/loss"] == pytest.approx(single["eval/validation/loss"], abs=0.02)
  assert half["train/skipped_steps"] < 3
  assert "train/loss_scale" not in single


def test_only_float16_has_a_loss_scale():
  assert tree.count(step.init_loss_scale("float16")) == 3
  assert step.init_loss_scale("float32") == step.init_loss_scale("bfloat16") == {}
