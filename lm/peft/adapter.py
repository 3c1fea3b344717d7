"""Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2020): a small network behind a sublayer, y + up(f(down(y)))."""

import dataclasses
import re
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import tree
from lm.layout import constrain
from lm.models.layers import ACTIVATIONS, broadcast_to_rank, contract
from lm.models.transformer import RESIDUAL
from lm.peft.peft import Around, Peft, in_task_head

# Sublayers of a block that an adapter stands behind, before the residual is added.
SUBLAYERS = {"houlsby": ("attention", "ffn"), "pfeiffer": ("ffn",)}


@dataclasses.dataclass(frozen=True)
class Adapter(Peft):
  """Trains one adapter per layer and sublayer, and the task's heads beside; of experts, one behind the sum that they give.

  The leaves stand under the adapter's name (`.../ffn/adapter/<adapter>/down/kernel`), so that several can share a base. `up`
  starts at zero, which leaves the model as it is. With `kind="pfeiffer"` the adapter stands where Houlsby's second one does:
  the paper's search found one behind the feed-forward sublayer to be enough; norms are not applied a second time.

  Raises:
    ValueError: an option that is out of range; by `merge`, always.
  """

  merges: ClassVar[bool] = False

  kind: str = "houlsby"  # houlsby: behind attention and feed-forward; pfeiffer: behind feed-forward only
  bottleneck_dim: int = 64  # units between the two linear maps
  activation: str = "gelu"  # between the two: gelu, gelu_tanh, relu, relu_squared or silu
  train_norms: bool = False  # the backbone's norms train too, as in Houlsby's paper
  adapter: str = "default"  # name of the leaves

  def __post_init__(self):
    if self.kind not in SUBLAYERS:
      raise ValueError(f"peft.kind={self.kind!r}: accepted are {', '.join(SUBLAYERS)}")
    if self.activation not in ACTIVATIONS:
      raise ValueError(f"peft.activation={self.activation!r}: accepted are {', '.join(ACTIVATIONS)}")
    if self.bottleneck_dim < 1:
      raise ValueError(f"peft.bottleneck_dim={self.bottleneck_dim}: must be at least 1")
    if not re.fullmatch(r"[\w.-]+", self.adapter):
      raise ValueError(f"peft.adapter={self.adapter!r}: accepted are letters, digits, '_', '.' and '-'")

  def attach(self, params, rng):
    boxes = tree.flatten(params)
    kernel = boxes["backbone/blocks/attention/out/kernel"].value
    L, D, R = kernel.shape[0], kernel.shape[-1], self.bottleneck_dim
    for i, sublayer in enumerate(SUBLAYERS[self.kind]):
      leaves = {
        "down/kernel": (jax.random.normal(jax.random.fold_in(rng, i), (L, D, R)) * D**-0.5, ("embed", "rank")),
        "down/bias": (jnp.zeros((L, R)), ("rank",)),
        "up/kernel": (jnp.zeros((L, R, D)), ("rank", "embed")),
        "up/bias": (jnp.zeros((L, D)), ("embed",)),
      }
      for leaf, (value, dims) in leaves.items():
        name = f"backbone/blocks/{sublayer}/adapter/{self.adapter}/{leaf}"
        boxes[name] = nn.LogicallyPartitioned(value, ("layers", *dims))
    return tree.unflatten(boxes)

  def trainable(self, name):
    norm = self.train_norms and re.fullmatch(r"backbone/(.*/)?\w*norm/(scale|bias)", name) is not None
    return norm or in_task_head(name) or f"/adapter/{self.adapter}/" in name

  @property
  def intercept(self):
    return Around(_adapt, self)

  def merge(self, params):
    del params
    raise ValueError("peft='adapter': an adapter is not linear and cannot be merged")


def _adapt(peft: Adapter, next_fun, args, kwargs, context):
  """Sends what a sublayer with the adapter's leaves gives through them; caches and sums of routers pass by."""
  out = next_fun(*args, **kwargs)
  module = context.module
  if context.method_name != "__call__" or not module.has_variable("params", "adapter"):
    return out
  leaves = module.get_variable("params", "adapter")[peft.adapter]
  y_BTD, *rest = out if isinstance(out, tuple) else (out,)
  y_BTD = constrain(y_BTD, *RESIDUAL)  # as the residual wants it: each position is adapted alone

  def linear(x, name):
    kernel, bias = (leaves[name][leaf].astype(y_BTD.dtype) for leaf in ("kernel", "bias"))
    return contract(x, kernel, dtype=x.dtype) + broadcast_to_rank(bias, x.ndim)

  h_BTR = ACTIVATIONS[peft.activation](linear(y_BTD, "down"))
  y_BTD = y_BTD + linear(h_BTR, "up")
  return (y_BTD, *rest) if rest else y_BTD
