"""Adafactor (Shazeer & Stern 2018): the mean square of a matrix's gradient is kept as that of its rows and of its columns.

The state of a kernel [D, F] has D + F numbers. T5's and PaLM's optimizer.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from lm import tree
from lm.optim.optimizer import Axes, Optimizer, decayed
from lm.shapes import kernel_dims


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
  """Every layer and every expert is a matrix [inputs, outputs] of its own: factored, clipped and scaled apart from others."""

  learning_rate: float = 1e-2  # peak; times the parameter's root mean square where `relative` is true
  weight_decay: float = 0.0  # times the learning rate, of kernels and tables
  clip_norm: float = 0.0  # of the whole gradient; 0 does not clip: `update_rms` bounds each update
  decay_power: float = 0.8  # step t keeps 1 - t^-power of the mean square
  update_rms: float = 1.0  # root mean square that a parameter's update is cut to, before the learning rate
  relative: bool = True  # whether a step is a share of the parameter's root mean square (1e-3 at least)
  min_factored_dim: int = 128  # smaller matrices keep the whole mean square

  def rule(self, schedule, axes):
    parts = [
      optax.scale_by_factored_rms(decay_rate=self.decay_power, min_dim_size_to_factor=self.min_factored_dim),
      optax.clip_by_block_rms(self.update_rms),
      *([optax.scale_by_param_block_rms()] if self.relative else []),
    ]
    decay = optax.add_decayed_weights(self.weight_decay, decayed)
    return optax.chain(_by_matrix(optax.chain(*parts), axes), decay, optax.scale_by_learning_rate(schedule))


def _by_matrix(rule: optax.GradientTransformation, axes: Axes) -> optax.GradientTransformation:
  """The rule on every leaf alone, and of a stacked one on every layer alone, kernels as matrices [inputs, outputs]."""

  def over(function: Callable, name: str) -> Callable:
    for _ in _stacked(axes[name]):
      function = jax.vmap(function)
    return function

  def init(params: Any) -> dict[str, Any]:
    flat = tree.flatten(params)
    return tree.unflatten({name: over(rule.init, name)(_matrices(x, axes[name])) for name, x in flat.items()})

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    grad_of, state_of, param_of = map(tree.flatten, (updates, state, params))
    new_of, update_of = {}, {}
    for name, grad in grad_of.items():
      grad_matrices, matrices = (_matrices(x, axes[name]) for x in (grad, param_of[name]))
      found, new_of[name] = over(rule.update, name)(grad_matrices, state_of[name], matrices)
      update_of[name] = found.reshape(grad.shape)
    return tree.unflatten(update_of), tree.unflatten(new_of)

  return optax.GradientTransformation(init, update)


def _stacked(dims: tuple[str | None, ...]) -> tuple[str | None, ...]:
  """The dims in front that there is a parameter for each of."""
  return tuple(dim for dim in dims[:2] if dim in ("layers", "experts"))


def _matrices(x: jax.Array, dims: tuple[str | None, ...]) -> jax.Array:
  """A kernel as [..., inputs, outputs], anything else as it is."""
  if "embed" not in dims or len(dims) - len(_stacked(dims)) < 3:
    return x
  stacked, inputs, _ = kernel_dims(dims)
  return x.reshape(*x.shape[: len(stacked)], math.prod(x.shape[dim] for dim in inputs), -1)
