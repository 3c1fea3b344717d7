"""The step on its own: gradients add over micro-batches, noise is new in every step, and what a float16 overflow changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import step, train, tree
from lm.optim.average import Average
from lm.optim.optimizer import Moves
from lm.optim.sgd import Sgd
from lm.state import NEVER, TrainState
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


@dataclasses.dataclass(frozen=True)
class Toy:
  """An objective and a tuner over one stacked kernel [L, 3]: weighted squares, noise per step, a penalty of the kernel."""

  noise: float = 0.0
  coefficients = {"toy/loss": 1.0}

  def denominators(self, batch):
    return {"toy/loss": batch["toy"]["weights"].sum()}

  def sums(self, params, batch, rng):
    shift = self.noise * jax.random.normal(rng, ())
    errors_B = jnp.square(batch["toy"]["x"] @ params["kernel"].T + shift).sum(-1)
    return {"toy/loss": jnp.sum(errors_B * batch["toy"]["weights"])}

  def penalties(self, params):
    return {"size": jnp.square(params["kernel"]).sum()}

  def after_average(self, params, moved):
    return params

  def after_update(self, params, grads, state, step):
    return params, state


def toy_steps(count=1, accumulation=1, optimizer=None, starts=None, kernel=None, scale=None, **settings):
  """State and metrics after some steps on one batch of 8 rows."""
  rng, toy, optimizer = np.random.default_rng(0), Toy(**settings), optimizer or optax.sgd(0.1)
  batch = {"toy": {"x": rng.normal(size=(8, 3)).astype("f4"), "weights": np.arange(8, dtype="f4")}}
  params = {"kernel": jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)}
  if kernel is not None:
    params = {"kernel": jnp.broadcast_to(jnp.float32(kernel), (2, 3))}
  loss_scale = step.init_loss_scale("float16") | {"scale": jnp.float32(scale)} if scale else {}
  state = TrainState(jnp.int32(0), params, {}, optimizer.init(params), {}, loss_scale)
  moves = optimizer
  if not isinstance(optimizer, Moves):
    moves = Moves(optimizer.init, optax.with_extra_args_support(optimizer).update, Average())
  compute = jax.jit(step.make_train_step(toy, moves, toy, starts or {}, accumulation))
  metrics = {}
  for _ in range(count):
    state, metrics = compute(state, batch, jax.random.key(0))
  return jax.device_get((state, metrics))


@pytest.mark.parametrize("changes", [{"accumulation": 2}, {"accumulation": 8}, {"scale": 2.0**10}], ids=str)
def test_micro_batches_and_the_loss_scale_change_no_gradient(changes):
  (one, expected), (other, found) = toy_steps(), toy_steps(**changes)
  np.testing.assert_allclose(other.params["kernel"], one.params["kernel"], rtol=1e-5)
  for name in ("loss", "grad_norm"):
    assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_noise_is_new_in_every_step():
  still = optax.sgd(0.0)
  losses = [float(toy_steps(count, optimizer=still, noise=1.0)[1]["loss"]) for count in (1, 2, 3)]
  assert len(set(losses)) == 3


def test_a_layer_that_does_not_train_neither_moves_nor_decays():
  optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
  before, _ = toy_steps(optimizer=optax.sgd(0.0))
  after, _ = toy_steps(2, optimizer=optimizer, starts={"kernel": np.array([0, NEVER])})
  moved = (before.params["kernel"] != after.params["kernel"]).any(axis=1)
  assert moved.tolist() == [True, False]


def test_a_layer_trains_from_its_step_on():
  kernels = [toy_steps(count, starts={"kernel": np.array([2, 1])})[0].params["kernel"] for count in (0, 1, 2, 3)]
  moved = [(after != before).any(axis=1).tolist() for before, after in zip(kernels[:-1], kernels[1:], strict=True)]
  assert moved == [[False, False], [False, True], [True, True]]


def test_what_does_not_train_yet_is_not_part_of_the_norm_that_clips():
  settings = {"learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 1, "momentum": 0.0}
  clipped = Sgd(clip_norm=0.1, **settings).make(10, {}, 2)
  before, _ = toy_steps(0, optimizer=clipped)
  _, alone = toy_steps(1, starts={"kernel": np.array([0, NEVER])})
  for start in (NEVER, 1):
    after, metrics = toy_steps(1, optimizer=clipped, starts={"kernel": np.array([0, start])})
    assert metrics["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-6)
    assert np.linalg.norm(after.params["kernel"] - before.params["kernel"]) == pytest.approx(0.1, rel=1e-4)


def test_moments_of_a_layer_follow_while_it_waits_but_not_of_one_that_never_trains():
  moments = [
    toy_steps(1, optimizer=optax.sgd(0.1, 0.9), starts={"kernel": np.array([0, start])})[0].opt_state[0].trace["kernel"]
    for start in (0, 1, NEVER)
  ]
  np.testing.assert_array_equal(moments[1], moments[0])
  assert moments[2][0].any() and not moments[2][1].any()


def test_a_frozen_layer_is_kept_bit_by_bit_whatever_its_update_is():
  update = lambda updates, params: jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), updates)
  after, _ = toy_steps(1, optimizer=optax.stateless(update), starts={"kernel": np.array([0, NEVER])}, kernel=-0.0)
  assert np.isnan(after.params["kernel"][0]).all()
  assert np.signbit(after.params["kernel"][1]).all()


def test_an_overflow_in_a_layer_that_waits_skips_the_step():
  grow = {"scale": 1e37, "starts": {"kernel": np.array([0, 1])}}
  after, metrics = toy_steps(1, optimizer=optax.sgd(0.1, 0.9), kernel=np.array([[0.0], [1e3]]) * np.ones((2, 3)), **grow)
  assert after.loss_scale["skipped"] == 1
  assert np.isfinite(metrics["grad_norm"])


def test_the_scale_doubles_after_enough_good_steps(monkeypatch):
  monkeypatch.setattr(step, "GROWTH_STEPS", 3)
  states = [toy_steps(count, scale=4.0)[0].loss_scale for count in (2, 3, 4)]
  assert [(float(s["scale"]), int(s["good_steps"])) for s in states] == [(4.0, 2), (8.0, 0), (8.0, 1)]
