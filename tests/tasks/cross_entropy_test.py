"""Head and cross-entropy in chunks: the same numbers as whole rows, little memory, each collective once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, sharding
from lm.tasks import cross_entropy
from lm.tasks.cross_entropy import PLAIN, Softening, chunked_log_probs, chunked_token_sums
from tests.models.topology import make_mesh

B, T, D, V = 8, 128, 128, 512


def make_arrays(batch=B, dtype=jnp.float32):
  rng = np.random.default_rng(0)
  h = jnp.asarray(rng.normal(size=(batch, T, D)), dtype)
  params = {
    "kernel": jnp.asarray(0.3 * rng.normal(size=(D, V)), jnp.float32),
    "bias": jnp.asarray(rng.normal(size=V), jnp.float32),
  }
  labels = jnp.asarray(rng.integers(0, V, (batch, T)), jnp.int32)
  return params, h, labels, jnp.asarray(rng.integers(0, 2, (batch, T)), jnp.float32)


def head(params, h):
  return (h @ params["kernel"].astype(h.dtype)).astype(jnp.float32) + params["bias"][None, None, :]


def loss(params, h, labels, weights, chunk, softening=PLAIN):
  sums = chunked_token_sums(head, params, (h, labels, weights), chunk, softening)
  return 0.5 * sums["loss"], sums


@pytest.mark.parametrize("chunk", [None, 16])
def test_softened_is_what_the_papers_say(chunk):
  """Against float64: the target is spread over all classes, the squared log of the normaliser is added."""
  params, h, labels, weights = make_arrays(batch=2)
  (_, sums), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, h, labels, weights, chunk, Softening(0.1, 0.01))

  def reference(kernel, h):
    logits = h @ kernel + np.asarray(params["bias"], np.float64)
    z = np.log(np.exp(logits).sum(-1))
    target = 0.9 * np.eye(V)[labels] + 0.1 / V
    return ((-(target * (logits - z[..., None])).sum(-1) + 0.01 * z**2) * np.asarray(weights)).sum()

  kernel, h = np.asarray(params["kernel"], np.float64), np.asarray(h, np.float64)
  assert sums["loss"] == pytest.approx(reference(kernel, h), rel=1e-6)
  rng, step = np.random.default_rng(1), 1e-4
  d_kernel, d_h = (rng.normal(size=x.shape) for x in (kernel, h))
  for grad, move, (a, b) in ((grads[0]["kernel"], d_kernel, (step, 0)), (grads[1], d_h, (0, step))):
    ends = [reference(kernel + sign * a * d_kernel, h + sign * b * d_h) for sign in (1, -1)]
    slope = 0.5 * (ends[0] - ends[1]) / (2 * step)
    assert float((np.asarray(grad, np.float64) * move).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("chunk", [0, 8, 128])
@pytest.mark.parametrize("sizes", [{}, {"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_chunks_give_the_numbers_of_whole_rows(sizes, chunk, monkeypatch):
  monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 4 * V * 4 * B)
  params, h, labels, weights = make_arrays()
  expected = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, h, labels, weights, None)
  mesh = sharding.make_mesh(config.Mesh(**{"data": 1, **sizes}), jax.devices()[: int(np.prod(list(sizes.values())))])
  with sharding.use(mesh):
    got = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=4)(params, h, labels, weights, chunk)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_sums_without_a_gradient_are_the_same():
  params, h, labels, weights = make_arrays()
  got, expected = (jax.jit(loss, static_argnums=4)(params, h, labels, weights, chunk)[1] for chunk in (8, None))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


@pytest.mark.parametrize("chunk", [0, 8])
@pytest.mark.parametrize("sizes", [{}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_log_probabilities_in_chunks_are_those_of_whole_rows_and_of_float64(sizes, chunk, monkeypatch):
  """A loss that is no sum over positions: the square of each row's log-likelihood."""
  monkeypatch.setattr(cross_entropy, "LOGIT_BYTES", 4 * V * 4 * B)
  params, h, labels, weights = make_arrays()

  def square(params, h, chunk):
    found = chunked_log_probs(head, params, h, labels, chunk)
    return jnp.sum((found * weights).sum(1) ** 2) * 1e-6, found

  expected = jax.value_and_grad(square, (0, 1), has_aux=True)(params, h, T)
  logits = np.asarray(h, np.float64) @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)
  exact = logits - np.log(np.exp(logits - logits.max()).sum(-1, keepdims=True)) - logits.max()
  np.testing.assert_allclose(expected[0][1], np.take_along_axis(exact, np.asarray(labels)[..., None], -1)[..., 0], rtol=1e-5)
  mesh = sharding.make_mesh(config.Mesh(**{"data": 1, **sizes}), jax.devices()[: int(np.prod(list(sizes.values())))])
  with sharding.use(mesh):
    got = jax.jit(jax.value_and_grad(square, (0, 1), has_aux=True), static_argnums=2)(params, h, chunk)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


def test_log_probabilities_in_chunks_take_little_memory():
  params, h, labels, _ = make_arrays()
  square = lambda params, h, chunk: jnp.sum(chunked_log_probs(head, params, h, labels, chunk).sum(1) ** 2)
  compiled = lambda chunk: jax.jit(jax.grad(square, (0, 1)), static_argnums=2).lower(params, h, chunk).compile()
  whole, chunked = (compiled(chunk).memory_analysis().temp_size_in_bytes for chunk in (T, 8))
  assert chunked < whole / 3


def compiled_step(mesh, chunk, dtype=jnp.float32):
  """The gradient's executable with parameters and their gradients over fsdp."""
  params, *rows = make_arrays(dtype=dtype)
  place = lambda *spec: NamedSharding(mesh, P(*spec))
  over = {"kernel": place("fsdp"), "bias": place()}
  abstract = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  arguments = jax.tree.map(abstract, params, over), *(abstract(x, place(("data", "fsdp"))) for x in rows)
  step = jax.jit(jax.grad(lambda *x: loss(*x, chunk)[0]), out_shardings=over)
  with sharding.use(mesh):
    return step.lower(*arguments).compile()


def collectives(text):
  """Collectives of matrices, with whether they stand in a loop's body: [(operation, in a loop)]."""
  bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
  found, computation = [], ""
  for line in text.splitlines():
    if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
      computation = header[1]
    operation = re.search(r"= .*?\[\d+,\d+.*? (all-gather|all-reduce|reduce-scatter)(?:-start)?\(", line)
    if operation:  # a TPU's reduce-scatter is an all-reduce that is fused with its slice
      fused = computation.startswith("all-reduce-scatter")
      found.append(("reduce-scatter" if fused else operation[1], computation in bodies))
  return found


@pytest.mark.parametrize("where", ["cpu", "tpu"])
def test_the_head_is_gathered_once_and_its_gradient_scattered_once(where):
  mesh = make_mesh("v5e:2x2", (1, 1, 4, 1, 1, 1), sharding.AXES) if where == "tpu" else None
  mesh = mesh or sharding.make_mesh(config.Mesh(data=1, fsdp=8), jax.devices())
  found = collectives(compiled_step(mesh, 8).as_text())
  assert sorted(name for name, _ in found) == ["all-gather", "reduce-scatter"], found
  assert not any(in_loop for _, in_loop in found)


def test_chunks_need_less_memory_than_whole_rows():
  mesh = sharding.make_mesh(config.Mesh(data=1), jax.devices()[:1])
  peaks = [compiled_step(mesh, chunk).memory_analysis().temp_size_in_bytes for chunk in (None, 4)]
  logits = 4 * B * T * V
  assert peaks[0] > logits
  assert peaks[1] < 0.6 * logits  # what is left: h, its gradient, the kernel's gradient and the batch
