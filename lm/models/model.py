"""Backbone and heads as pure functions of parameters. Outside lm/models nobody sees a module.

Parameters: {"backbone": {...}, "head_<name>": {...}}.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lm import tree
from lm.models.cache import Cache
from lm.models.head_spec import HeadSpec
from lm.models.heads import HEADS, ROW_HEADS
from lm.models.kernel import Kernel
from lm.models.transformer import Output, Transformer
from lm.models.transformer_config import TransformerConfig


class _Network(nn.Module):
  cfg: TransformerConfig
  heads: tuple[tuple[str, HeadSpec], ...]
  dtype: DTypeLike
  remat: str
  unroll: int
  kernel: Kernel
  stacked: bool

  def setup(self):
    self.backbone = Transformer(self.cfg, self.dtype, self.remat, self.unroll, self.kernel, self.stacked)
    self.head = {name: HEADS[spec.kind](self.cfg, spec, self.dtype) for name, spec in self.heads}

  def hidden(self, inputs, perturb, cache):
    return self.backbone(inputs, perturb, cache)

  def hidden_states(self, inputs):
    out = self.backbone(inputs, keep_inputs=True)
    assert out.inputs_LBTD is not None
    return jnp.concatenate([out.inputs_LBTD, out.hidden_BTD[None]])

  def logits(self, name, h, row_B, table_VD):
    return self.head[name](h, row_B, table_VD)

  def __call__(self, inputs):
    h_BTD = self.backbone(inputs).hidden_BTD
    table_VD = jnp.zeros((self.cfg.vocab_size, self.cfg.model_dim))
    for name, spec in self.heads:
      self.head[name](h_BTD[:, 0] if spec.kind in ROW_HEADS else h_BTD, inputs["row"], table_VD)


Intercept = Callable[..., Any]  # flax's (next_fun, args, kwargs, context) -> result


class Tuner(Protocol):
  """What stays around a tuned model that cannot be merged into a plain one: a value, so that equal models are equal."""

  @property
  def num_virtual_tokens(self) -> int: ...
  @property
  def position_shift(self) -> int: ...
  @property
  def intercept(self) -> Intercept | None: ...
  def attach(self, params: dict, rng: jax.Array) -> dict: ...
  def merge(self, params: dict) -> dict: ...


class Quantizer(Protocol):
  """Keeps kernels in fewer bits (lm.quantizers): a value, and the interceptor around all others that unpacks them."""

  def __call__(self, next_fun, args, kwargs, context) -> Any: ...
  def attach(
    self, boxes: Mapping[str, Any], attach: Callable[[Mapping[str, Any]], dict[str, Any]], trains: Callable[[str], bool]
  ) -> tuple[dict[str, Any], dict[str, Any]]: ...
  def num_weights(self, name: str, size: int) -> int: ...


@dataclasses.dataclass(frozen=True)
class Model:
  """A transformer with named heads; hashable, so that equal models share compiled functions.

  tuner: part of a model that was tuned and is used; while a method trains, it is the objective's (`intercept`).
  quantizer: how kernels are kept that are packed.
  """

  cfg: TransformerConfig
  heads: tuple[tuple[str, HeadSpec], ...] = ()
  dtype: str = "float32"
  remat: str = "none"
  unroll: int = 1
  kernel: Kernel = Kernel()  # of attention
  tuner: Tuner | None = None
  quantizer: Quantizer | None = None
  stacked: bool = True  # whether parameters and caches of the layers are; see `apart`

  def init(self, rng: jax.Array) -> dict:
    """Random parameters, each leaf boxed with its logical axis names (`nn.unbox` takes them off)."""
    zeros = jnp.zeros((1, 1), jnp.int32)
    inputs = {"tokens": zeros, "segment_ids": zeros, "positions": zeros, "row": zeros[:, 0]}
    params = self._network.init(rng, inputs)["params"]
    return self.tuner.attach(params, rng) if self.tuner else params

  @property
  def num_virtual_tokens(self) -> int:
    """Positions in front of every sequence that the tuner fills (lm.data.reserve)."""
    return self.tuner.num_virtual_tokens if self.tuner else 0

  @property
  def max_len(self) -> int:
    """Tokens of the longest row, by the table of learned positions behind what the tuner moves; rotary ones go on."""
    shift = self.tuner.position_shift if self.tuner and self.cfg.positions == "learned" else 0
    return self.cfg.max_len - shift

  @property
  def abstract(self) -> dict:
    """What `init` gives, as shapes: nothing is allocated."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def hidden(self, params: dict, inputs: dict, *, rng=None, intercept=None, perturb=None, cache: Cache | None = None) -> Output:
    """Hidden states [B, T, D] and what comes with them. Dropout is on where `rng` is given."""
    return self._apply(params, rng, intercept, "hidden", inputs, perturb, cache)

  def hidden_states(self, params: dict, inputs: dict) -> jax.Array:
    """[L + 1, B, T, D]: what each block reads, the embedding first, and at last what `hidden` gives."""
    return self._apply(params, None, None, "hidden_states", inputs)

  def logits(self, params: dict, head: str, h: jax.Array, row_B: jax.Array, *, rng=None, intercept=None) -> jax.Array:
    """The named head's fp32 outputs."""
    table_VD = params["backbone"]["embed"]["embedding"] if self.cfg.tied else None
    return self._apply(params, rng, intercept, "logits", head, h, row_B, table_VD)

  def as_read(self, params: dict) -> dict:
    """The parameters with kernels and tables in the compute type, where a loop would convert them at every step.

    A router reads its kernel in fp32, as norms read their scales.
    """

    def read(path: Any, leaf: jax.Array) -> jax.Array:
      name = tree.leaf_name(path)
      large = name.endswith(("/kernel", "/embedding")) and "/router/" not in name
      return leaf.astype(self.dtype) if large and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree_util.tree_map_with_path(read, params)

  def apart(self, params: dict, cache: Cache) -> tuple["Model", dict, Cache]:
    """The same with every layer by itself, for steps of single tokens, which cost what reading the parameters costs.

    On a CPU a layer is copied out of its stack wherever it is read, and the cache whole into one.
    """
    layers = range(self.cfg.num_layers)
    backbone = dict(params["backbone"])
    blocks = backbone.pop("blocks")
    backbone |= {f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in layers}
    k, v = (tuple(stack[i] for i in layers) for stack in (cache.k_LBSKC, cache.v_LBSKC))
    return dataclasses.replace(self, stacked=False), params | {"backbone": backbone}, cache.replace(k_LBSKC=k, v_LBSKC=v)

  def read_by(self, head: str, params: dict) -> dict:
    """The parameters that `logits` of that head reads, as a part of the tree."""
    own = {name: value for name, value in params.items() if name == f"head_{head}"}
    return own | ({"backbone": {"embed": {"embedding": params["backbone"]["embed"]["embedding"]}}} if self.cfg.tied else {})

  @property
  def _network(self) -> _Network:
    return _Network(self.cfg, self.heads, jnp.dtype(self.dtype), self.remat, self.unroll, self.kernel, self.stacked)

  def _apply(self, params, rng, intercept, method, *args):
    rngs = None if rng is None else {"dropout": rng}
    intercept = self.tuner.intercept if self.tuner else intercept
    with contextlib.ExitStack() as stack:
      for each in (self.quantizer, intercept):  # the method inside, so that it finds kernels unpacked
        if each is not None:
          stack.enter_context(nn.intercept_methods(each))
      return self._network.apply({"params": params}, *args, rngs=rngs, method=method)
