"""The mixture-of-experts feed-forward sublayer (Shazeer et al. 2017): a router sends every token to k of E networks.

Mixtral (Jiang et al. 2024) and Qwen3-MoE (Yang et al. 2025). A *pair* is one choice of one token: pair t * k + j is the j-th
choice of token t. Pairs are sorted by expert, and each expert's map is one matrix product over its pairs.
"""

import functools
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from lm.layout import axes_of, constrain, num_shards, rounded
from lm.models.layers import ACTIVATIONS, Linear, normal
from lm.models.transformer_config import TransformerConfig

# (x [G, M, D], kernel [E, D, F]) -> [G, M, F]: every place by the kernel of its expert. By slots, M is [E, C].
Contract = Callable[[jax.Array, jax.Array], jax.Array]


class Dispatch(NamedTuple):
  """Where N pairs stand among M places that are ordered by expert. Numbers that are out of range differ from each other.

  pair_M: the pair at a place, N and more where there is none. place_N: the place of a pair, M and more where it was dropped.
  """

  pair_M: jax.Array
  place_N: jax.Array
  sizes_E: jax.Array  # pairs that chose an expert


class ExpertLinear(nn.Module):
  """One kernel per expert: [G, ..., in] -> [G, ..., out]. `contract` knows which place belongs to which expert."""

  num_experts: int
  features: int
  axes: tuple[str, str]
  stddev: float = 0.02
  dtype: DTypeLike = jnp.float32
  num_inputs: ClassVar[int] = 1  # as of a Linear

  @nn.compact
  def __call__(self, x: jax.Array, contract: Contract) -> jax.Array:
    shape = (self.num_experts, x.shape[-1], self.features)
    kernel = self.param("kernel", normal(self.stddev, ("experts", *self.axes)), shape)
    return contract(x.astype(self.dtype), kernel.astype(self.dtype))


class Experts(nn.Module):
  """[B, T, D] -> ([B, T, D], sums over each row's real tokens), in place of the dense `Ffn`.

  Dropless (`expert_capacity` 0), a token reaches all its experts. With a capacity, an expert takes at most that many pairs of
  a row; the others add nothing, and the residual carries their tokens. Earlier tokens come first, a token's first choice
  before its second: what a token gets does not depend on those behind it, as a causal model needs. (GShard, Lepikhin et al.
  2020, lets all first choices pass before all second ones.) Padding takes no slot.

  Over the mesh axis `expert`, slots travel to the devices of their experts and back, by all-to-all. How many pairs a dropless
  device gets is not known beforehand: the devices of that axis gather each other's tokens, each serves its experts, and the
  sum is scattered. That is exact and holds k pairs of all these tokens; ragged all-to-all would need as large a buffer, for
  the case that all come. Over the other axes dropless tokens stay where they are, and kernels are gathered, also over `tensor`.
  """

  cfg: TransformerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x_BTD: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """real_BT: 0 on padding, whose output means nothing. The sums: see `router_sums`."""
    cfg = self.cfg
    E, k = cfg.num_experts, cfg.experts_per_token
    assert not cfg.bias, "experts have no biases"
    B, T, D = x_BTD.shape
    # fp32 whatever the compute type: a rounded logit sends a token elsewhere (Fedus et al. 2021).
    logits_BTE = Linear((E,), ("embed", "experts"), bias=False, stddev=cfg.init_stddev, name="router")(x_BTD)
    probs_BTE = jax.nn.softmax(logits_BTE)
    # Sorted, because the partitioner gathers the whole batch for `top_k`.
    chosen_BTk = jnp.argsort(probs_BTE, axis=-1, stable=True, descending=True)[:, :, :k]
    gates_BTk = jnp.take_along_axis(probs_BTE, chosen_BTk, axis=-1)
    if cfg.renormalize_gates:
      gates_BTk /= gates_BTk.sum(-1, keepdims=True)

    x_BTD = x_BTD.astype(self.dtype)
    if cfg.expert_capacity:
      y_BTD = self._by_slots(x_BTD, jnp.where(real_BT[:, :, None] > 0, chosen_BTk, E), gates_BTk)
    else:
      y_BTD = self._dropless(x_BTD, chosen_BTk, gates_BTk)
    return y_BTD.astype(self.dtype), router_sums(logits_BTE, chosen_BTk, real_BT)

  # Gathering pairs, not tokens, no index occurs twice, so that the gradient adds in one order on every device.

  def _by_slots(self, x_BTD: jax.Array, wanted_BTk: jax.Array, gates_BTk: jax.Array) -> jax.Array:
    """Each row's pairs to the slots of their experts, which lie `rounded` apart, and back."""
    (B, T, D), E, k = x_BTD.shape, self.cfg.num_experts, self.cfg.experts_per_token
    capacity = math.ceil(T * k / E * self.cfg.expert_capacity)
    stride = rounded(capacity, "slots")
    x_BTD = constrain(x_BTD, "batch", "keys", "split_activation")
    wanted_BTk, gates_BTk = (constrain(x, "batch", "keys", None) for x in (wanted_BTk, gates_BTk))
    dispatch = functools.partial(_dispatch, num_experts=E, capacity=capacity, stride=stride)
    where = jax.vmap(dispatch)(wanted_BTk.reshape(B, T * k))
    at_rows, at_experts = ("batch", None, None, "split_activation"), ("expert_batch", "experts", None, "split_activation")
    serving = ("expert_batch", "experts", "slots", "activation")
    x_BECD = _take(jnp.repeat(x_BTD, k, axis=1), where.pair_M).reshape(B, E, stride, D)
    for dims in (at_rows, at_experts, serving):
      x_BECD = constrain(x_BECD, *dims)
    y_BECD = self._networks(x_BECD, _of_slots)
    for dims in (("expert_batch", "experts", "slots", "reduced"), at_experts, at_rows):
      y_BECD = constrain(y_BECD, *dims)
    y_BTkD = _take(y_BECD.reshape(B, E * stride, D), where.place_N).reshape(B, T, k, D)
    return jnp.einsum("btkd,btk->btd", y_BTkD, gates_BTk)

  def _dropless(self, x_BTD: jax.Array, chosen_BTk: jax.Array, gates_BTk: jax.Array) -> jax.Array:
    """The pairs of each device's tokens, and of those that the others of its `expert` axis have, sorted for its own experts."""
    (B, T, D), k = x_BTD.shape, self.cfg.experts_per_token
    rows, tokens, experts = axes_of("expert_batch", B), axes_of("residual_length", T), axes_of("experts", self.cfg.num_experts)
    R, S, X = map(num_shards, (rows, tokens, experts))
    own = self.cfg.num_experts // X

    def group(x):
      """[B, T, ...] -> [R * S, B / R * T / S, ...]: the tokens of the devices along `expert` together."""
      x = x.reshape(R, B // R, S, T // S, *x.shape[2:]).swapaxes(1, 2)
      return _split(x.reshape(R * S, -1, *x.shape[4:]), (*rows, *tokens))

    x_GND, expert_GN, gates_Gnk = jnp.repeat(group(x_BTD), k, axis=1), group(chosen_BTk).reshape(R * S, -1), group(gates_BTk)
    expert_GXN = expert_GN[:, None, :] - own * jnp.arange(X)[None, :, None]
    expert_GXN = jnp.where((expert_GXN >= 0) & (expert_GXN < own), expert_GXN, own)
    each = lambda x: _split(x.reshape(R * S * X, *x.shape[2:]), (*rows, *tokens, *experts))
    where = jax.vmap(functools.partial(_dispatch, num_experts=own))(each(expert_GXN))
    x_GMD = _take(each(jnp.broadcast_to(x_GND[:, None], (R * S, X, *x_GND.shape[1:]))), where.pair_M)
    y_GMD = self._networks(x_GMD, functools.partial(_ragged, where.sizes_E, (*rows, *tokens), experts))
    y_GXnkD = _take(y_GMD, where.place_N).reshape(R * S, X, -1, k, D)
    y_RSbtD = jnp.einsum("gxnkd,gnk->gnd", y_GXnkD, gates_Gnk).reshape(R, S, B // R, T // S, D)
    y_RSbtD = _split(y_RSbtD, rows, tokens, experts if B // R % X == 0 else ())
    return y_RSbtD.swapaxes(1, 2).reshape(B, T, D)

  def _networks(self, x_GMD: jax.Array, contract: Contract) -> jax.Array:
    cfg = self.cfg
    linear = functools.partial(ExpertLinear, cfg.num_experts, dtype=self.dtype)
    widen = lambda name: linear(cfg.ffn_dim, ("embed", "mlp"), cfg.init_stddev, name=name)(x_GMD, contract)
    activate = ACTIVATIONS[cfg.activation]
    h_GMF = activate(widen("gate")) * widen("up") if cfg.gated else activate(widen("up"))
    stddev = cfg.init_stddev * (2 * cfg.num_layers) ** -0.5
    return linear(cfg.model_dim, ("mlp", "embed"), stddev, name="down")(h_GMF, contract)


def router_sums(logits_BTE: jax.Array, chosen_BTk: jax.Array, real_BT: jax.Array) -> dict[str, jax.Array]:
  """The router's two losses as sums over the real tokens of each row: divided by the real tokens of the batch, its loss.

  balance_B: n E sum_e f_e P_e (Fedus et al. 2021), with f the share of the row's n * k pairs that chose e and P the mean
  probability of e: 1 per token at perfect balance whatever k (transformers' f adds up to k, and so does its loss). Both are
  of the row alone, as DeepSeek-V2's sequence-wise loss is (2024): sums over rows are what accumulation and sharding
  leave exact, a product of two means over a batch is not.
  z_B: sum of logsumexp(logits)^2 (Zoph et al. 2022).
  """
  E, k = logits_BTE.shape[-1], chosen_BTk.shape[-1]
  real_BT = real_BT.astype(jnp.float32)
  prob_BE = jnp.einsum("bte,bt->be", jax.nn.softmax(logits_BTE), real_BT)
  pairs_BE = jnp.einsum("btke,bt->be", jax.nn.one_hot(chosen_BTk, E), real_BT)
  balance_B = E / k * (pairs_BE * prob_BE).sum(-1) / jnp.maximum(real_BT.sum(-1), 1)
  z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
  return {"balance_B": balance_B, "z_B": (z_BT * real_BT).sum(-1)}


def _dispatch(expert_N: jax.Array, num_experts: int, capacity: int = 0, stride: int = 0) -> Dispatch:
  """Sorts the pairs of one group by their expert, those without (`num_experts`) last.

  capacity: per expert; 0: no limit. stride: places per expert where there is a limit, no fewer.
  """
  E, N, M = num_experts, expert_N.size, num_experts * stride
  order_N = jnp.argsort(expert_N, stable=True)
  rank_N = jnp.argsort(order_N)
  first = jnp.searchsorted(expert_N[order_N], jnp.arange(E + 1))
  sizes_E = jnp.diff(first)
  if not capacity:
    return Dispatch(order_N, jnp.where(expert_N < E, rank_N, N + jnp.arange(N)), sizes_E)
  m = jnp.arange(M)
  expert_M, slot_M = m // stride, m % stride
  sorted_M = jnp.minimum(first[expert_M] + slot_M, N - 1)
  pair_M = jnp.where(slot_M < jnp.minimum(sizes_E[expert_M], capacity), order_N[sorted_M], N + m)
  slot_N = rank_N - first[expert_N]
  taken_N = (slot_N < capacity) & (expert_N < E)
  return Dispatch(pair_M, jnp.where(taken_N, expert_N * stride + slot_N, M + jnp.arange(N)), sizes_E)


def _take(x_GND: jax.Array, i_GM: jax.Array) -> jax.Array:
  """[G, M, D]: rows of x by number, zeros where it is out of range."""
  return jax.vmap(lambda x_ND, i_M: x_ND.at[i_M].get(mode="fill", fill_value=0, unique_indices=True))(x_GND, i_GM)


def _of_slots(x_GECD: jax.Array, kernel_EDF: jax.Array) -> jax.Array:
  """Contracts places of which every expert has the same number."""
  return jnp.einsum("gecd,edf->gecf", x_GECD, kernel_EDF)


def _ragged(
  sizes_GE: jax.Array, axes: tuple[str, ...], experts: tuple[str, ...], x_GMD: jax.Array, kernel_EDF: jax.Array
) -> jax.Array:
  """Contracts places of which a group's expert e has sizes_GE[:, e]. Groups are split over both kinds of mesh axes.

  Each device has one, of the experts whose kernels it has.

  XLA's CPU fallback multiplies every place by every expert: E times the work of k experts per token, measured with E 4 and 8
  as 8 to 11 times a dense network's time forward and 3.4 times its gradient's. There an ample capacity is faster.
  """

  def one_group(sizes_GE, x_GMD, kernel_EDF):
    return jax.lax.ragged_dot(x_GMD[0], kernel_EDF, sizes_GE[0])[None]

  if len(x_GMD) == 1:
    return one_group(sizes_GE, x_GMD, kernel_EDF)
  groups = P((*axes, *experts))
  mapped = jax.shard_map(
    one_group, in_specs=(groups, groups, P(experts)), out_specs=groups, axis_names={*axes, *experts}
  )  # fmt: skip
  return mapped(sizes_GE, x_GMD, kernel_EDF)


def _split(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
  """x, its first dims split over these axes of the ambient mesh."""
  return jax.lax.with_sharding_constraint(x, P(*axes)) if any(axes) else x
