"""What regularizers add, against the papers' formulas; that they add over rows and chunks, and leave evaluation alone."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import plug, train
from lm.plug import ConfigError
from lm.tasks.cross_entropy import divergence_sum
from tests.conftest import LABELS, SIZES, TEXTS, make_run

slow = pytest.mark.slow
EVERY = plug.names("regularizer")


def model(causal=False, **changes):
  return {"name": "gpt2-tiny" if causal else "bert-tiny", **SIZES, "dropout_rate": 0.1, **changes}


def make(regularizer, kind="classify", **settings):
  """(objective, parameters, batch, noise) of a run with it."""
  run = make_run(kind, regularizer=regularizer, **{"model": model(kind == "causal"), **settings})
  objective, state = run.program.spec.objective, run.init_state()
  # Far enough from the start that predictions differ, and slopes are no rounding.
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), state.params)
  return objective, params, run.loader.batch(0), jax.random.key(5)


def plain_of(objective):
  return dataclasses.replace(objective, regularizer=None)


@functools.partial(jax.jit, static_argnums=0)
def sums_of(objective, params, batch, rng):
  return objective.sums(params, batch, rng)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(objective, params, batch, rng, perturb=None):
  """Of the classifier at [CLS]."""
  inputs = batch["inputs"]
  h_BTD = objective.model.hidden(params, inputs, rng=rng, perturb=perturb).hidden_BTD
  return objective.model.logits(params, "classify", h_BTD[:, 0], inputs["row"], rng=rng)


def divergence(a, b, weights):
  """Mean of both KLs, summed over rows."""
  p, q = jax.nn.softmax(a), jax.nn.softmax(b)
  return 0.5 * float((((p - q) * (jnp.log(p) - jnp.log(q))).sum(-1) * weights).sum())


def test_rdrop_is_the_mean_of_two_passes_and_how_far_they_are_apart():
  objective, params, batch, rng = make("rdrop(weight=3.0)")
  rngs = rng, jax.random.fold_in(rng, 1)
  losses = [sums_of(plain_of(objective), params, batch, rng)["classify/loss"] for rng in rngs]
  apart = divergence(*(logits_of(objective, params, batch, rng) for rng in rngs), batch["classify"]["weights"])
  assert apart > 1e-3
  found = sums_of(objective, params, batch, rng)["classify/loss"]
  assert found == pytest.approx(np.mean(losses) + 3.0 * apart, rel=1e-5)


def test_fgm_trains_where_the_slope_of_every_row_leads():
  objective, params, batch, rng = make("fgm(epsilon=0.5, weight=2.0)")
  plain = plain_of(objective)

  @jax.jit
  def loss(perturb):
    logp = jax.nn.log_softmax(logits_of(objective, params, batch, rng, perturb))
    own = batch["classify"]
    return -(jnp.take_along_axis(logp, own["label"][:, None], 1)[:, 0] * own["weights"]).sum()

  zero = jnp.zeros((*batch["inputs"]["tokens"].shape, SIZES["model_dim"]))
  slope = jax.jit(jax.grad(loss))(zero)
  lengths = np.linalg.norm(np.asarray(slope).reshape(len(slope), -1), axis=1)[:, None, None]
  expected = loss(zero) + 2.0 * loss(0.5 * slope / lengths)
  assert sums_of(objective, params, batch, rng)["classify/loss"] == pytest.approx(float(expected), rel=1e-5)
  assert loss(0.5 * slope / lengths) > loss(zero) + 1e-3
  assert sums_of(objective, params, batch, rng)["classify/accuracy"] == sums_of(plain, params, batch, rng)["classify/accuracy"]


def test_smart_adds_the_divergence_at_the_worst_push_within_its_radius():
  objective, params, batch, rng = make("smart(weight=2.0, radius=0.02, step_size=0.05, noise_stddev=0.001, num_pushes=2)")
  inputs, weights = batch["inputs"], batch["classify"]["weights"]
  logits = logits_of(objective, params, batch, rng)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, inputs["row"])
  push = 0.001 * jax.vmap(lambda key: jax.random.normal(key, (inputs["tokens"].shape[1], SIZES["model_dim"])))(keys)

  @jax.jit
  def apart(push):
    p, q = (jax.nn.log_softmax(x) for x in (logits, logits_of(objective, params, batch, rng, push)))
    return 0.5 * (((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1) * weights).sum()

  for _ in range(2):
    slope = jax.jit(jax.grad(apart))(push)
    push = jnp.clip(push + 0.05 * slope / jnp.abs(slope).max(axis=(1, 2), keepdims=True), -0.02, 0.02)
  plain = sums_of(plain_of(objective), params, batch, rng)["classify/loss"]
  found = sums_of(objective, params, batch, rng)["classify/loss"] - plain
  assert found == pytest.approx(2.0 * float(apart(push)), rel=1e-3) and found > 1e-3


@pytest.mark.parametrize(
  ("name", "kind"),
  [(EVERY[0], "mlm"), *(pytest.param(name, "causal", marks=slow if name == "smart" else []) for name in EVERY)],
)
def test_sums_add_over_rows_and_chunks(name, kind):
  """Halves of a batch, and chunks of rows, give what the whole gives; so do their gradients."""
  objective, params, batch, rng = make(name, kind, loss_chunk=16)

  def loss(params, part, objective):
    return objective.sums(params, part, rng)[f"{kind}/loss"]

  of = jax.jit(jax.value_and_grad(loss), static_argnums=2)
  parts = [jax.tree.map(lambda x, i=i: x[i::2], dict(batch)) for i in range(2)]
  halves = [of(params, part, objective) for part in parts]
  added = jax.tree.map(jnp.add, *halves)
  whole = of(params, batch, dataclasses.replace(objective, loss_chunk=64))
  assert whole[0] != pytest.approx(float(of(params, batch, plain_of(objective))[0]), rel=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), added, whole)


def test_divergence_is_the_same_in_chunks():
  rng = np.random.default_rng(0)
  h, other = (jnp.asarray(rng.normal(size=(2, 8, 4)), jnp.float32) for _ in range(2))
  kernel, weights = jnp.asarray(rng.normal(size=(4, 7)), jnp.float32), jnp.asarray(rng.integers(0, 2, (2, 8)), jnp.float32)
  head = lambda read, h: h @ read
  of = jax.value_and_grad(lambda h, chunk: divergence_sum((head, head), kernel, (h, other, weights), chunk))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of(h, 2), of(h, None))
  assert of(h, None)[0] == pytest.approx(divergence(h @ kernel, other @ kernel, weights), rel=1e-5)


@pytest.mark.parametrize("name", [EVERY[0], *(pytest.param(name, marks=slow) for name in EVERY[1:])])
def test_a_run_trains_with_it_and_evaluates_without(name, tmp_path):
  settings = {"model": model(), "total_steps": 3, "eval_every": 3}
  with_it, without = (
    train.train(make_run("classify", **settings, **extra), tmp_path / f"{len(extra)}") for extra in ({"regularizer": name}, {})
  )
  first = lambda folder: (tmp_path / folder / "metrics.jsonl").read_text().splitlines()[0]
  assert '"eval/' in first("1")
  strip = lambda line: {k: v for k, v in json.loads(line).items() if k.startswith("eval/")}
  assert strip(first("1")) == strip(first("0"))
  assert with_it["loss_sha256"] != without["loss_sha256"]


def test_streams_of_one_task_are_regularized_apart():
  texts = lambda part: {"name": "memory", "texts": part, "text_labels": LABELS[: len(part)]}
  streams = {name: {"task": "classify", "data": texts(part)} for name, part in (("a", TEXTS), ("b", TEXTS[::-1]))}
  objective, params, batch, rng = make("rdrop", task=None, data=None, streams=streams)
  found, plain = (sums_of(each, params, batch, rng) for each in (objective, plain_of(objective)))
  assert found["a+b/loss"] == pytest.approx(float(found["a/loss"] + found["b/loss"]), rel=1e-6)
  assert found.keys() == plain.keys() and found["a/loss"] != plain["a/loss"]


@pytest.mark.parametrize(
  ("value", "words"),
  [
    ("rdop", "regularizer 'rdop': unknown; did you mean 'rdrop'"),
    ("rdrop(weight=0.0)", "regularizer.weight=0.0: must be above 0"),
    ("fgm(epsilon=-1.0)", "regularizer.epsilon=-1.0: must be above 0"),
    ("smart(num_pushes=0)", "regularizer.num_pushes=0: must be above 0"),
  ],
)
def test_a_slip_is_one_line(value, words):
  with pytest.raises((ConfigError, ValueError), match=words.replace("(", r"\(")) as raised:
    make_run("classify", regularizer=value)
  assert "\n" not in str(raised.value)
