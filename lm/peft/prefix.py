"""Prefix tuning (Li & Liang 2021), which P-tuning v2 (Liu et al. 2022) is too: trained keys and values in every layer.

The backbone is frozen. Every query of every segment sees the prefix, whatever causality and windows say. Rows are as long as
without it, and tokens stand behind it as in the papers' code and the library peft: their positions count from the prefix's
length on. Its own keys are not rotated. The papers train it through an MLP that is thrown away afterwards; here it trains
directly, as P-tuning v2 does where that is as good.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from lm import tree
from lm.models.kernel import Extra
from lm.models.transformer import Transformer
from lm.peft.peft import Around, Peft, in_task_head
from lm.plug import ConfigError


@dataclasses.dataclass(frozen=True)
class Prefix(Peft):
  """Trains keys and values [L, num_prefix, K, C] beside those of the rows, and the task's heads.

  With grouped-query attention the heads of a group share theirs, as they share the keys of the tokens.

  Raises:
    ValueError: by `merge`: no kernel of the backbone computes what a prefix does.
  """

  num_prefix: int = 20  # keys and values of each layer and kv head
  init_stddev: float = 0.02  # of the normal distribution that keys and values start from (1 in the library peft)
  adapter: str = "default"  # name of the leaves

  identity_at_init: ClassVar[bool] = False
  merges: ClassVar[bool] = False

  def __post_init__(self):
    if self.num_prefix < 1:
      raise ConfigError(f"peft.num_prefix={self.num_prefix}: must be at least 1")
    if self.init_stddev <= 0:
      raise ConfigError(f"peft.init_stddev={self.init_stddev}: must be above 0")

  def attach(self, params, rng):
    boxes = tree.flatten(params)
    for name, box in list(boxes.items()):
      if not name.endswith("/attention/key/kernel"):
        continue
      num_layers, _, num_heads, channels = box.value.shape
      shape = num_layers, self.num_prefix, num_heads, channels
      for i, part in enumerate(("key", "value")):
        values = jax.random.normal(jax.random.fold_in(rng, i), shape) * self.init_stddev
        leaf = name.replace("/key/kernel", f"/core/prefix/{self.adapter}/{part}")
        boxes[leaf] = nn.LogicallyPartitioned(values, ("layers", None, "heads", "channels"))
    return tree.unflatten(boxes)

  @property
  def position_shift(self):
    return self.num_prefix

  def trainable(self, name):
    return in_task_head(name) or f"/prefix/{self.adapter}/" in name

  @property
  def intercept(self):
    return Around(_show, self)

  def merge(self, params):
    raise ConfigError(
      "peft='prefix': no plain model computes what trained keys and values do, so they cannot be merged into one; such a run"
      " is used and evaluated from its own workdir, or exported with --adapter"
    )


def _show(prefix: Prefix, next_fun, args, kwargs, context):
  """Moves the positions of tokens, and gives the keys and values to the part of attention that mixes."""
  module = context.module
  if isinstance(module, Transformer) and context.method_name == "__call__":
    inputs, *rest = args
    return next_fun(inputs | {"positions": inputs["positions"] + prefix.num_prefix}, *rest, **kwargs)
  if context.method_name != "__call__" or not module.has_variable("params", "prefix"):
    return next_fun(*args, **kwargs)
  leaves, dtype = module.get_variable("params", "prefix")[prefix.adapter], args[0].dtype
  return next_fun(*args, **kwargs, extra=Extra(leaves["key"].astype(dtype), leaves["value"].astype(dtype)))
