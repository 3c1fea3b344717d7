"""DoRA: magnitudes of whole outputs, a detached norm, kernels that keep their magnitude whatever the product."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.models.layers import Linear
from lm.peft.dora import Dora
from tests.conftest import make_run
from tests.contracts.peft_test import biased_run

DORA = Dora(rank=2, alpha=6.0)


def linear(num_inputs=1, bias=True):
  """A linear module, its parameters with random leaves, and inputs."""
  shape = (3, 2)[-num_inputs:]
  module = Linear((4, 2), (*("heads", "channels")[-num_inputs:], "embed", "embed"), num_inputs=num_inputs, bias=bias)
  x = jax.random.normal(jax.random.key(0), (5, *shape))
  params = nn.unbox(module.init(jax.random.key(1), x))["params"]
  size = int(np.prod(shape))
  draw = lambda i, *dims: jax.random.normal(jax.random.key(i), dims)
  leaves = {"a": draw(2, size, 2), "b": draw(3, 2, 8), "magnitude": 1 + 0.1 * draw(4, 1, 8)}
  params |= {"bias": draw(5, 4, 2)} if bias else {}
  return module, params | {"lora": {"default": leaves}}, x


def apply(module, params, x):
  with nn.intercept_methods(DORA.intercept):
    return module.apply({"params": params}, x)


@pytest.mark.parametrize("num_inputs", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_paper_writes(num_inputs, bias):
  module, params, x = linear(num_inputs, bias)
  a, b, magnitude = (np.asarray(params["lora"]["default"][name]) for name in ("a", "b", "magnitude"))
  directed = np.asarray(params["kernel"]).reshape(-1, 8) + 3.0 * a @ b
  kernel = magnitude * directed / np.sqrt((directed**2).sum(0, keepdims=True))
  expected = np.asarray(x).reshape(5, -1) @ kernel + (np.asarray(params["bias"]).reshape(1, 8) if bias else 0)
  np.testing.assert_allclose(apply(module, params, x).reshape(5, 8), expected, rtol=1e-5, atol=1e-5)
  merged = DORA.merge({"query": params})["query"]
  np.testing.assert_allclose(merged["kernel"].reshape(-1, 8), kernel, rtol=1e-5, atol=1e-6)
  assert ("bias" in merged) == bias


def test_no_gradient_passes_through_the_norm():
  module, params, x = linear()
  leaves = params["lora"]["default"]
  directed = params["kernel"].reshape(-1, 8) + 3.0 * leaves["a"] @ leaves["b"]
  norms = jnp.linalg.norm(directed, axis=0, keepdims=True)

  def with_constant_norm(own):
    changed = params["kernel"].reshape(-1, 8) + 3.0 * own["a"] @ own["b"]
    return jnp.sin(x.reshape(5, -1) @ (changed * own["magnitude"] / norms) + params["bias"].reshape(1, 8)).sum()

  computed = lambda own: jnp.sin(apply(module, params | {"lora": {"default": own}}, x)).sum()
  expected, found = jax.grad(with_constant_norm)(leaves), jax.grad(computed)(leaves)
  for name, leaf in expected.items():
    np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-5)


def test_the_product_turns_a_kernel_and_leaves_its_magnitude():
  run = biased_run("classify", "dora(targets=.*attention/.*)")
  boxed = jax.jit(run.program.spec.model.init)(jax.random.key(0))
  attached = tree.flatten(nn.unbox(DORA.attach(boxed, jax.random.key(1))))
  turned = {name: x + 0.3 if name.endswith("/b") else x for name, x in attached.items()}
  merged = tree.flatten(DORA.merge(tree.unflatten(turned)))
  name = "backbone/blocks/attention/query/kernel"
  before, after = (np.asarray(flat[name]).reshape(2, 32, 32) for flat in (attached, merged))
  assert np.abs(before - after).max() > 0.01
  np.testing.assert_allclose(np.linalg.norm(after, axis=1), np.linalg.norm(before, axis=1), rtol=1e-5)


def test_leaves_are_those_of_lora_and_a_magnitude_that_does_not_decay():
  dora, lora = (biased_run("classify", name).program for name in ("dora", "lora"))
  added = dora.trainable.keys() - lora.trainable.keys()
  path = "backbone/blocks/attention/{}/lora/default/magnitude".format
  assert added == {path("query"), path("value")}
  still = make_run("classify", peft="dora", optimizer={"name": "adamw", "learning_rate": 0.1, "weight_decay": 0.9}).program
  params = tree.map_named(lambda _, leaf: jnp.ones(leaf.shape, leaf.dtype), still.abstract.params)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = still._moves.update(zeros, still._moves.init(params), params)
  decayed = {name.rsplit("/", 1)[1] for name, update in tree.flatten(updates).items() if np.any(update)}
  assert {"a", "b", "kernel"} <= decayed and "magnitude" not in decayed


def test_a_column_of_zeros_stays_one():
  kernel = jnp.asarray([[1.0, 0.0], [2.0, 0.0]])
  _, leaves = Dora(rank=1).start(kernel, jax.random.key(0))
  np.testing.assert_allclose(Dora(rank=1).changed(kernel, leaves), kernel, rtol=1e-6)
