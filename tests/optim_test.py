"""What the optimizers do to a parameter: which leaves decay, how the rate rises and falls, what is clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import plug, tree
from lm.optim.adafactor import Adafactor
from lm.optim.adamw import Adamw
from lm.optim.average import Ema
from lm.optim.lion import Lion
from lm.optim.muon import Muon
from lm.optim.optimizer import SCHEDULES
from lm.optim.schedule_free import ScheduleFree
from lm.optim.sgd import Sgd

DECAYED = {"backbone/blocks/ffn/up/kernel": ("layers", "embed", "mlp"), "backbone/embed/embedding": ("vocab", "embed")}
AXES = DECAYED | {
  "backbone/blocks/norm/scale": ("layers", "embed"),
  "head_mlm/bias": ("vocab",),
  "backbone/blocks/attention/query/bias": ("layers", "heads", "channels"),
}


def make_params():
  """Ones, by flat name, as a tree."""
  return tree.unflatten({name: jnp.ones((2, 3, 3)[: len(dims)]) for name, dims in AXES.items()})


def first_update(optimizer, gradient):
  """By name, for a gradient of that value everywhere."""
  params, chain = make_params(), optimizer.make(10, AXES, 2)
  updates, _ = jax.jit(chain.update)(jax.tree.map(lambda x: jnp.full_like(x, gradient), params), chain.init(params), params)
  return {name: np.asarray(value) for name, value in tree.flatten(updates).items()}


@pytest.mark.parametrize("make", [plug.find("optimizer", name) for name in plug.names("optimizer")])
def test_kernels_and_tables_decay_and_neither_scales_nor_biases(make):
  updates = first_update(make(learning_rate=0.5, weight_decay=0.1, schedule="constant", warmup_steps=1), 0.0)
  assert {name for name, update in updates.items() if update.any()} == set(DECAYED)
  assert updates["backbone/blocks/ffn/up/kernel"] == pytest.approx(-0.5 * 0.1, rel=1e-5)


def test_the_whole_gradient_is_clipped():
  settings = {"learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 1, "momentum": 0.0}
  norm = lambda updates: float(np.sqrt(sum(np.square(x).sum() for x in updates.values())))
  assert norm(first_update(Sgd(clip_norm=0.5, **settings), 7.0)) == pytest.approx(0.5, rel=1e-5)
  assert norm(first_update(Sgd(clip_norm=0.0, **settings), 7.0)) > 7


def test_muon_leaves_tables_to_adam_at_its_own_rate():
  settings = {"weight_decay": 0.0, "schedule": "constant", "warmup_steps": 1}
  rates = [(0.5, 0.01), (0.25, 0.01), (0.5, 0.02)]  # of the blocks' kernels, and of the rest
  kernel, table = DECAYED
  updates = [first_update(Muon(learning_rate=a, adam_learning_rate=b, **settings), 0.1) for a, b in rates]
  for name, sizes in ((kernel, (1, 0.5, 1)), (table, (1, 1, 2))):
    found = [update[name] / updates[0][name] for update in updates]
    np.testing.assert_allclose(found, [np.full_like(found[0], size) for size in sizes], rtol=1e-5)


@pytest.mark.parametrize("make", [Adamw, Lion, Muon, Sgd])
def test_a_mean_in_bfloat16_takes_half_and_moves_as_one_in_float32(make):
  params = make_params()
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  moved, kept = {}, {}
  for dtype in ("float32", "bfloat16"):
    chain = make(learning_rate=0.01, schedule="constant", warmup_steps=1, momentum_dtype=dtype).make(10, AXES, 2)
    state, total = chain.init(params), jax.tree.map(jnp.zeros_like, params)
    for step in range(4):
      grads = jax.tree.map(lambda x, step=step: 1 + jax.random.normal(jax.random.key(step), x.shape), params)
      updates, state = jax.jit(chain.update)(grads, state, params)
      total = jax.tree.map(jnp.add, total, updates)
    moved[dtype], kept[dtype] = tree.flatten(total), sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  assert kept["float32"] - kept["bfloat16"] == 2 * size
  for name, whole in moved["float32"].items():
    np.testing.assert_allclose(moved["bfloat16"][name], whole, atol=0.03 * np.abs(whole).max(), err_msg=name)
  with pytest.raises(ValueError, match="optimizer.momentum_dtype='int8': accepted are float32, bfloat16"):
    make(momentum_dtype="int8")


@pytest.mark.parametrize("relative", [True, False])
def test_adafactor_is_that_of_each_layer_alone(relative):
  """Against optax's over one matrix: a kernel with heads, of three layers with gradients of other sizes."""
  settings = {"learning_rate": 0.1, "weight_decay": 0.01, "schedule": "constant", "min_factored_dim": 4}
  name, shape = "backbone/blocks/attention/query/kernel", (3, 8, 2, 4)
  names = {name: ("layers", "embed", "heads", "channels")}
  chain = Adafactor(**settings, warmup_steps=1, relative=relative).make(10, names, 3)
  alone = optax.adafactor(0.1, 4, multiply_by_parameter_scale=relative, weight_decay_rate=0.1 * 0.01)
  params = jax.random.normal(jax.random.key(0), shape)
  as_tree = lambda x: tree.unflatten({name: x})
  state, states = chain.init(as_tree(params)), [alone.init(layer.reshape(8, 8)) for layer in params]
  assert sorted(x.shape for x in jax.tree.leaves(state) if x.ndim > 1) == [(3, 1), (3, 8), (3, 8)]
  for step in range(3):
    grads = jax.random.normal(jax.random.key(step + 1), shape) * jnp.array([1e-3, 1.0, 50.0])[:, None, None, None]
    updates, state = chain.update(as_tree(grads), state, as_tree(params))
    (update,) = tree.flatten(updates).values()
    for i, layer in enumerate(params):
      expected, states[i] = alone.update(grads[i].reshape(8, 8), states[i], layer.reshape(8, 8))
      np.testing.assert_allclose(update[i].reshape(8, 8), expected, rtol=1e-5, atol=1e-7)
    params += update


def test_lion_goes_by_the_sign_of_its_momentum():
  updates = first_update(Lion(learning_rate=0.5, weight_decay=0.1, schedule="constant", warmup_steps=1), -3.0)
  kernel, norm = updates["backbone/blocks/ffn/up/kernel"], updates["backbone/blocks/norm/scale"]
  assert kernel == pytest.approx(0.5 * (1 - 0.1)) and norm == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_starts_above_zero_and_ends_at_the_peak(schedule):
  rates = [float(Adamw(learning_rate=2.0, schedule=schedule, warmup_steps=4).make_schedule(24)(i)) for i in range(24)]
  assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
  assert max(rates) == pytest.approx(2.0)


def test_wsd_falls_in_the_last_fifth_only():
  rates = [float(Adamw(learning_rate=2.0, schedule="wsd", warmup_steps=4).make_schedule(24)(i)) for i in range(24)]
  assert rates[3:20] == pytest.approx([2.0] * 17)
  assert (np.diff(rates[20:]) < 0).all()


def test_inverse_sqrt_halves_at_four_times_the_warm_up():
  rates = [float(Adamw(learning_rate=2.0, schedule="inverse_sqrt", warmup_steps=4).make_schedule(24)(i)) for i in range(24)]
  assert rates[3:5] == pytest.approx([2.0, 2 * (4 / 5) ** 0.5]) and rates[15] == pytest.approx(1.0)


def test_schedule_free_is_that_of_optax_whose_parameters_are_the_points():
  """Losses at the points, and the average, over a quadratic with a warm-up and a decay."""
  optimizer = ScheduleFree(learning_rate=0.1, warmup_steps=3, weight_decay=0.1, clip_norm=0.0, momentum=0.9, b2=0.95)
  names = {"backbone/embed/embedding": ("vocab", "embed")}
  target, start = (jax.random.normal(jax.random.key(i), (4, 3)) for i in range(2))
  schedule = optimizer.make_schedule(12)
  adam = optax.adamw(schedule, b1=0.0, b2=0.95, weight_decay=0.1)
  theirs = optax.contrib.schedule_free(adam, lambda count: schedule(count - 1), 0.9)  # it counts steps from 1
  slope = jax.grad(lambda x: 0.5 * jnp.square(jax.tree.leaves(x)[0] - target).sum())
  y, their_state = start, theirs.init(start)
  moves, params = optimizer.make(12, names, 1), tree.unflatten(dict.fromkeys(names, start))
  state, average = moves.init(params), moves.average.init(params)
  for step in range(12):
    point = moves.average.point(params, average)
    np.testing.assert_allclose(jax.tree.leaves(point)[0], y, rtol=2e-4, atol=2e-5)
    updates, state = moves.update(slope(point), state, point)
    moved = optax.apply_updates(moves.average.moving(params, average), updates)
    params, average = moves.average.update(params, moved, average, jnp.int32(step))
    updates, their_state = theirs.update(slope(y), their_state, y)
    y = optax.apply_updates(y, updates)
    their_average = optax.contrib.schedule_free_eval_params(their_state, y)
    np.testing.assert_allclose(jax.tree.leaves(params)[0], their_average, rtol=2e-4, atol=2e-5)


def test_a_moving_average_forgets_its_start_and_then_keeps_its_rate():
  average, x, z = Ema(0.5), {"a": jnp.zeros(())}, {"a": jnp.ones(())}
  state = average.init(x)
  for step, expected in enumerate((0.9, 1 - 0.1 * 2 / 11, 1 - 0.1 * 2 / 11 * 3 / 12)):
    x, state = average.update(x, z, state, jnp.int32(step))
    assert float(x["a"]) == pytest.approx(expected, rel=1e-5)
  x, _ = average.update({"a": jnp.zeros(())}, z, state, jnp.int32(1000))
  assert float(x["a"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ("adamw(ema_rate=1.0)", "optimizer.ema_rate=1.0: must be at least 0 and below 1"),
    ("schedule_free(schedule=cosine)", "optimizer.schedule='cosine': schedule_free has none"),
    ("schedule_free(ema_rate=0.9)", "optimizer.ema_rate=0.9: schedule_free averages by itself"),
    ("schedule_free(momentum=1.0)", "optimizer.momentum=1.0: must be at least 0 and below 1"),
  ],
)
def test_an_average_that_cannot_be_is_one_line(value, words):
  with pytest.raises(ValueError, match=words) as raised:
    plug.make("optimizer", plug.parse_plug("optimizer", value))
  assert "\n" not in str(raised.value)
