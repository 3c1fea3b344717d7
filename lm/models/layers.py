"""The leaves of the network: linear maps, norms, embedding tables, dropout.

Every module that holds parameters creates them in a compact `__call__`, so that a PEFT interceptor can stand around it.
Parameters are fp32 and carry logical axis names; compute is in `dtype`, norms in fp32.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm.layout import axes_of, platform
from lm.models.transformer_config import TransformerConfig


def logical(initializer: nn.initializers.Initializer, axes: tuple[str | None, ...]) -> Any:
  """The initializer of a parameter that carries logical axis names: a box when created, an array when applied."""
  return nn.with_logical_partitioning(initializer, axes)


def normal(stddev: float, axes: tuple[str | None, ...]) -> Any:
  """Normal initializer of a parameter with logical axis names."""
  return logical(nn.initializers.normal(stddev), axes)


def broadcast_to_rank(x: jax.Array, rank: int) -> jax.Array:
  """Prepends dims of size 1 until `x` has `rank` dims (implicit rank promotion is an error in the tests)."""
  return x.reshape((1,) * (rank - x.ndim) + x.shape)


def contract(
  x: jax.Array, kernel: jax.Array, num_inputs: int = 1, dtype: DTypeLike = jnp.float32, result: DTypeLike | None = None
) -> jax.Array:
  """x [..., *inputs] by a kernel [*inputs, *features] -> [..., *features], computed in `dtype`; of type `result` if given."""
  # Rows in one dim would move what the mesh splits along positions.
  on_cpu = platform() == "cpu" and not axes_of("residual_length")
  return (_contract_on_cpu if on_cpu else _contract)((num_inputs, dtype, result), x, kernel)


def _contract(how: tuple, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """As a product of two matrices: results [..., heads, 64] would be kept in tiles that are half empty on a TPU."""
  num_inputs, dtype, result = how
  rows, features = x.shape[: x.ndim - num_inputs], kernel.shape[num_inputs:]
  matrix = kernel.astype(dtype).reshape(-1, math.prod(features))
  y = jnp.tensordot(x.astype(dtype).reshape(*rows, -1), matrix, 1, preferred_element_type=result)
  return y.reshape(*rows, *features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contract_on_cpu(how: tuple, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The same, with a kernel's gradient that sums over rows in one dim.

  Over two, [B, T], XLA's CPU makes them one by writing one side of the product out transposed, which was a quarter of a step of
  rows of 64 tokens and more of longer ones (experiments/LOG.md).
  """
  return _contract(how, x, kernel)


def _contract_forward(how: tuple, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _contract(how, x, kernel), (x, kernel)


def _contract_backward(how: tuple, saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
  (x, kernel), num_inputs = saved, how[0]
  (g_x,) = jax.linear_transpose(lambda x: _contract(how, x, kernel), x)(g)
  x_N = x.reshape(-1, *x.shape[x.ndim - num_inputs :])
  (g_kernel,) = jax.linear_transpose(lambda kernel: _contract(how, x_N, kernel), kernel)(
    g.reshape(-1, *kernel.shape[num_inputs:])
  )
  return g_x, g_kernel


_contract_on_cpu.defvjp(_contract_forward, _contract_backward)


class Linear(nn.Module):
  """Contracts the last `num_inputs` dims of x with a kernel [*inputs, *features]; axes name the kernel's dims."""

  features: tuple[int, ...]
  axes: tuple[str | None, ...]
  num_inputs: int = 1
  bias: bool = True
  stddev: float = 0.02
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = (*x.shape[-self.num_inputs :], *self.features)
    kernel = self.param("kernel", normal(self.stddev, self.axes), shape)
    y = contract(x, kernel, self.num_inputs, self.dtype)
    if self.bias:
      zeros = logical(nn.initializers.zeros, self.axes[self.num_inputs :])
      y = y + broadcast_to_rank(self.param("bias", zeros, self.features).astype(self.dtype), y.ndim)
    return y


class Norm(nn.Module):
  """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last dim, computed in fp32.

  offset: what the learned scale is added to; it starts so that the sum is 1.
  """

  kind: str
  eps: float
  bias: bool = True
  offset: float = 0.0
  axis: str = "norm"

  @classmethod
  def of(cls, cfg: TransformerConfig, name: str) -> "Norm":
    """The norm of the residual stream."""
    return cls(cfg.norm, cfg.norm_eps, cfg.bias, float(cfg.norm_plus_one), name=name)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    if self.kind == "layernorm":
      y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
    neutral = logical(nn.initializers.constant(1 - self.offset), (self.axis,))
    scale = self.param("scale", neutral, x.shape[-1:])
    y = y * broadcast_to_rank(scale + self.offset if self.offset else scale, y.ndim)
    if self.kind == "layernorm" and self.bias:
      zeros = logical(nn.initializers.zeros, (self.axis,))
      y = y + broadcast_to_rank(self.param("bias", zeros, x.shape[-1:]), y.ndim)
    return y.astype(x.dtype)


class Embed(nn.Module):
  """Table lookup: ids [...] -> [..., D]."""

  num_rows: int
  dim: int
  axes: tuple[str | None, ...] = ("vocab", "embed")
  stddev: float = 0.02
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    table = self.param("embedding", normal(self.stddev, self.axes), (self.num_rows, self.dim))
    return jnp.take(table, ids, axis=0, mode="clip").astype(self.dtype)


class Dropout(nn.Module):
  """Dropout whose noise belongs to a row of the global batch, so that accumulation and sharding do not change it.

  Active where an rng named "dropout" is given; the key is folded with `row_B`, the row's number in the global batch.
  """

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, row_B: jax.Array) -> jax.Array:
    if self.rate == 0 or not self.has_rng("dropout"):
      return x
    return drop(self.rate, self.make_rng("dropout"), x, row_B)


def drop(rate: float, rng: jax.Array, x: jax.Array, row_B: jax.Array) -> jax.Array:
  """x [B, ...] with a share of its values zero and the others larger by as much; the noise is that of (rng, row)."""
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(rng, row_B)
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys_B)
  return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021 (Primer)
  "silu": jax.nn.silu,
}


def soft_cap(x: jax.Array, cap: float) -> jax.Array:
  """Bends x into -cap..cap (Gemma 2); a cap of 0 leaves it alone."""
  return cap * jnp.tanh(x / cap) if cap else x
