"""Muon (Jordan et al. 2024): momentum orthogonalised by Newton-Schulz for the blocks' kernels, AdamW for the rest."""

import dataclasses
from typing import Any

import jax
import optax

from lm import tree
from lm.optim.optimizer import Axes, WithMomentum, decayed
from lm.shapes import kernel_dims


@dataclasses.dataclass(frozen=True)
class Muon(WithMomentum):
  """Muon for the kernels of the blocks, AdamW for everything else: tables, norms, heads.

  Each layer and each stack of heads is orthogonalised as one matrix [inputs, outputs], whose dims follow from the kernel's
  logical axis names.
  """

  learning_rate: float = 0.02  # peak, of the blocks' kernels
  adam_learning_rate: float = 3e-3  # peak of the rest, on the same schedule
  momentum: float = 0.95  # of Muon, Nesterov's
  b1: float = 0.9  # of Adam: decay of the gradient's mean
  b2: float = 0.95  # of Adam: decay of its mean square

  def rule(self, schedule, axes):
    scale = self.adam_learning_rate / self.learning_rate
    dims = lambda params: muon_dims(params, axes)
    shared: dict[str, Any] = dict(weight_decay=self.weight_decay, mu_dtype=self.momentum_dtype)
    kernels = optax.contrib.muon(schedule, beta=self.momentum, muon_weight_dimension_numbers=dims, **shared)
    # optax's own Adam beside Muon takes no mask, and would let scales and biases decay.
    rest = optax.adamw(lambda step: schedule(step) * scale, self.b1, self.b2, mask=decayed, nesterov=True, **shared)
    is_dims = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    labels = lambda params: jax.tree.map(lambda x: "rest" if x is None else "kernels", dims(params), is_leaf=is_dims)
    return optax.partition({"kernels": kernels, "rest": rest}, labels)


def muon_dims(params: Any, axes: Axes) -> Any:
  """MuonDimensionNumbers for the blocks' kernels of two sides, None (Adam) for every other leaf."""

  def dims(path, _leaf):
    name = tree.leaf_name(path)
    if "/blocks/" not in name or not name.endswith("/kernel"):
      return None
    _, inputs, outputs = kernel_dims(axes[name])
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)

  return jax.tree_util.tree_map_with_path(dims, params)
