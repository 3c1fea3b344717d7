"""What the optimizers do to a parameter: which leaves decay, how the rate rises and falls, what is clipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.optim import SCHEDULES, Adamw, Muon, Sgd

AXES = {"backbone/blocks/ffn/up/kernel": ("layers", "embed", "mlp"), "backbone/embed/embedding": ("vocab", "embed")}
NAMES = (*AXES, "backbone/blocks/norm/scale", "head_mlm/bias", "backbone/blocks/attention/query/bias")


def make_params():
  """Ones, by flat name, as a tree."""
  return tree.unflatten({name: jnp.ones((2, 3, 3)[: len(AXES.get(name, "x"))]) for name in NAMES})


def first_update(optimizer, gradient):
  """By name, for a gradient of that value everywhere."""
  params, chain = make_params(), optimizer.make(10, AXES)
  updates, _ = jax.jit(chain.update)(jax.tree.map(lambda x: jnp.full_like(x, gradient), params), chain.init(params), params)
  return {name: np.asarray(value) for name, value in tree.flatten(updates).items()}


@pytest.mark.parametrize("make", [Adamw, Muon, Sgd])
def test_kernels_and_tables_decay_and_neither_scales_nor_biases(make):
  updates = first_update(make(learning_rate=0.5, weight_decay=0.1, schedule="constant", warmup_steps=1), 0.0)
  assert {name for name, update in updates.items() if update.any()} == set(AXES)
  assert updates["backbone/blocks/ffn/up/kernel"] == pytest.approx(-0.5 * 0.1, rel=1e-5)


def test_the_whole_gradient_is_clipped():
  settings = {"learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant", "warmup_steps": 1, "momentum": 0.0}
  norm = lambda updates: float(np.sqrt(sum(np.square(x).sum() for x in updates.values())))
  assert norm(first_update(Sgd(clip_norm=0.5, **settings), 7.0)) == pytest.approx(0.5, rel=1e-5)
  assert norm(first_update(Sgd(clip_norm=0.0, **settings), 7.0)) > 7


def test_muon_leaves_tables_to_adam_at_its_own_rate():
  settings = {"weight_decay": 0.0, "schedule": "constant", "warmup_steps": 1}
  rates = [(0.5, 0.01), (0.25, 0.01), (0.5, 0.02)]  # of the blocks' kernels, and of the rest
  kernel, table = AXES
  updates = [first_update(Muon(learning_rate=a, adam_learning_rate=b, **settings), 0.1) for a, b in rates]
  for name, sizes in ((kernel, (1, 0.5, 1)), (table, (1, 1, 2))):
    found = [update[name] / updates[0][name] for update in updates]
    np.testing.assert_allclose(found, [np.full_like(found[0], size) for size in sizes], rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_starts_above_zero_and_ends_at_the_peak(schedule):
  rates = [float(Adamw(learning_rate=2.0, schedule=schedule, warmup_steps=4).make_schedule(24)(i)) for i in range(24)]
  assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
  assert max(rates) == pytest.approx(2.0)


def test_wsd_falls_in_the_last_fifth_only():
  rates = [float(Adamw(learning_rate=2.0, schedule="wsd", warmup_steps=4).make_schedule(24)(i)) for i in range(24)]
  assert rates[3:20] == pytest.approx([2.0] * 17)
  assert (np.diff(rates[20:]) < 0).all()
