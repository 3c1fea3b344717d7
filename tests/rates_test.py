"""Shares of the learning rate: by layer, by pattern, under every optimizer, and in the step of a run."""

import jax
import numpy as np
import pytest

from lm import plug, tree
from lm.optim.adamw import Adamw
from tests.conftest import make_run
from tests.optim_test import AXES, first_update, make_params

OPTIMIZERS = [plug.find("optimizer", name) for name in plug.names("optimizer")]
STEADY = {"schedule": "constant", "warmup_steps": 1}


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_layers_learn_the_slower_the_deeper_they_are(make):
  plain, slowed = (first_update(make(layer_decay=decay, **STEADY), 0.1) for decay in (1.0, 0.5))
  shares = {"head_mlm/bias": 1.0, "backbone/embed/embedding": 0.125}
  for name in AXES:
    share = shares.get(name, np.array([0.25, 0.5]).reshape(2, *[1] * (plain[name].ndim - 1)))
    assert plain[name].all()
    np.testing.assert_allclose(slowed[name], plain[name] * share, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_first_rate_that_matches_counts_with_the_decay_of_layers_and_weight_decay_follows(make):
  rates = ("backbone/.*/(scale|bias): 3", "backbone/blocks/.*: 0.1", "head_.*:10")
  expected = {
    "backbone/blocks/ffn/up/kernel": 0.1,
    "backbone/blocks/norm/scale": 3,
    "backbone/blocks/attention/query/bias": 3,
    "head_mlm/bias": 10,
    "backbone/embed/embedding": 1,
  }
  for gradient in (0.0, 0.1):
    plain = first_update(make(**STEADY), gradient)
    scaled = first_update(make(rates=rates, **STEADY), gradient)
    for name, factor in expected.items():
      np.testing.assert_allclose(scaled[name], plain[name] * factor, rtol=1e-5, err_msg=name)
  both = make(rates=rates, layer_decay=0.5).factors(AXES, 2)
  np.testing.assert_allclose(both["backbone/blocks/norm/scale"], [0.75, 1.5])


def test_rates_add_nothing_to_the_state():
  shape = lambda optimizer: jax.tree.structure(optimizer.make(10, AXES, 2).init(make_params()))
  assert shape(Adamw()) == shape(Adamw(rates=("head_.*: 2",), layer_decay=0.9))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"layer_decay": 0.0}, "optimizer.layer_decay=0.0: must be above 0 and at most 1"),
    ({"layer_decay": 1.1}, "optimizer.layer_decay=1.1: must be above 0 and at most 1"),
    ({"rates": ("head_.*",)}, "optimizer.rates='head_.*': expected 'PATTERN: FACTOR' with a factor above 0; peft says what"),
    ({"rates": ("head_.*: 0",)}, "optimizer.rates='head_.*: 0': expected 'PATTERN: FACTOR' with a factor above 0; peft"),
    ({"rates": (".*: nan",)}, "optimizer.rates='.*: nan': expected"),
    ({"rates": (": 2",)}, "optimizer.rates=': 2': expected"),
    ({"rates": ("(a: 2",)}, "optimizer.rates='(a: 2': '(a' is no regular expression: missing ), unterminated subpattern"),
    ({"rates": ("hed_.*: 2",)}, "optimizer.rates: pattern 'hed_.*' matches none of the parameters: backbone/blocks/ffn/up/"),
    ({"rates": ("head_.*: 2", "head_mlm/.*: 3")}, "optimizer.rates='head_mlm/.*: 3': patterns before it match all of its"),
  ],
)
def test_rates_that_mean_nothing_are_one_line(options, message):
  with pytest.raises(ValueError) as raised:
    Adamw(**options).make(10, AXES, 2)
  assert str(raised.value).startswith(message)
  assert "\n" not in str(raised.value)


def test_a_rate_is_of_what_trains():
  optimizer = {"name": "adamw", "rates": ("backbone/embed/.*: 0.1",)}
  assert make_run("classify", optimizer=optimizer).program
  with pytest.raises(ValueError, match=r"^optimizer.rates: pattern 'backbone/embed/.*' matches none of the parameters: head_"):
    make_run("classify", optimizer=optimizer, peft="head")


def test_layer_decay_slows_the_layers_of_a_run():
  optimizer = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.0, "clip_norm": 0.0, "weight_decay": 0.0, **STEADY}
  moved = []
  for decay in (1.0, 0.5):
    run = make_run("classify", optimizer=optimizer | {"layer_decay": decay})
    run.program.compile(run.loader.shapes(), [])
    state = run.init_state()
    before = {name: np.array(x) for name, x in tree.flatten(state.params).items()}
    state, _ = run.program.train(state, run.loader.batch(0), run.noise_rng)
    moved.append({name: np.asarray(x) - before[name] for name, x in tree.flatten(state.params).items()})
  plain, slowed = moved
  for name, factors in {
    "backbone/blocks/ffn/up/kernel": np.array([0.25, 0.5]).reshape(2, 1, 1),
    "backbone/embed/embedding": 0.125,
    "backbone/final_norm/scale": 1.0,
    "head_classify/out/kernel": 1.0,
  }.items():
    assert np.abs(plain[name]).max() > 1e-6
    np.testing.assert_allclose(slowed[name], plain[name] * factors, atol=2e-7, rtol=1e-3, err_msg=name)
