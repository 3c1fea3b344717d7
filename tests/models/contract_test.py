"""The product under every linear map: on a CPU it has a gradient of its own, which is that of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, sharding
from lm.models.layers import contract


@pytest.fixture
def mesh():
  return sharding.make_mesh(config.Mesh(), jax.devices()[:1])


def case(num_inputs, features):
  draw = lambda i, *dims: jax.random.normal(jax.random.key(i), dims)
  inputs = (4, 3)[:num_inputs]
  return draw(0, 2, 5, *inputs), draw(1, *inputs, *features), draw(2, 2, 5, *features)


def summed_dims(function, *args):
  """Over how many dims each product sums."""
  products = (eqn for eqn in jax.make_jaxpr(function)(*args).jaxpr.eqns if eqn.primitive.name == "dot_general")
  return [len(eqn.params["dimension_numbers"][0][0]) for eqn in products]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_inputs", "features"), [(1, (6,)), (1, (2, 3)), (2, (6,))])
def test_values_and_gradients_are_those_of_the_plain_product(num_inputs, features, dtype, mesh):
  x, kernel, weights = case(num_inputs, features)

  def loss(x, kernel):
    y = contract(x, kernel, num_inputs, dtype, jnp.float32)
    return (y * weights).sum(), y

  grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
  plain = grad(x, kernel)
  with sharding.use(mesh):
    found = jax.jit(grad)(x, kernel)
    dims = summed_dims(grad, x, kernel)
  near = dict(rtol=1e-5, atol=1e-5) if dtype == "float32" else dict(rtol=2e-2, atol=5e-2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), found, plain)
  assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
    lambda leaf: (leaf.shape, leaf.dtype), plain
  )
  assert dims == [1, 1, 1]
  reference = np.tensordot(np.asarray(x, np.float64), np.asarray(kernel, np.float64), num_inputs)
  np.testing.assert_allclose(found[0][1], reference, atol=1e-5 if dtype == "float32" else 0.2)


@pytest.mark.parametrize("axis", ["sequence", "tensor"])
def test_where_positions_are_split_rows_stay_as_they_are(axis):
  mesh = sharding.make_mesh(config.Mesh(**{axis: 2}), jax.devices()[:2])
  x, kernel, _ = case(1, (6,))
  with sharding.use(mesh):
    assert summed_dims(jax.value_and_grad(lambda kernel: contract(x, kernel).sum()), kernel) == [1, 2]
