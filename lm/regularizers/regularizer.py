"""The contract of a regularizer, and the passes over a batch that it may ask for. It knows no task and no model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

Sums = dict[str, jax.Array]
# What the cross-entropies of a pass read, in their order (lm.tasks.forward.Read).
Read = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Passes:
  """One batch and the tasks on it.

  evaluate: (params, rng, perturb=, against=, mix=) -> (sums by name, what was read); `lm.tasks.forward.Pass` says what the
  names mean. coefficients: of the sums that are losses. shape: (B, T, D), of `perturb`. row_B: the rows' numbers in the
  global batch.
  """

  evaluate: Callable[..., tuple[Sums, Read]]
  params: Any
  coefficients: Mapping[str, float]
  shape: tuple[int, int, int]
  row_B: jax.Array

  def run(self, rng: jax.Array, **how: Any) -> tuple[Sums, Read]:
    """A pass with that noise."""
    return self.evaluate(self.params, rng, **how)

  def normal(self, rng: jax.Array) -> jax.Array:
    """Standard normal noise of `shape`, of each row's own, so that accumulation and sharding do not change it."""
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(rng, self.row_B)
    return jax.vmap(lambda key: jax.random.normal(key, self.shape[1:]))(keys_B)

  def slope(self, perturb_BTD: jax.Array, rng: jax.Array, against: Read = (), **how: Any) -> jax.Array:
    """The gradient of the summed losses with respect to `perturb`, which moves each row's own losses only. A constant."""
    params, against = jax.lax.stop_gradient((self.params, against))

    def total(perturb_BTD: jax.Array) -> jax.Array:
      sums, _ = self.evaluate(params, rng, perturb=perturb_BTD, against=against, **how)
      return jnp.sum(jnp.stack([weight * sums[name] for name, weight in self.coefficients.items() if name in sums]))

    return jax.lax.stop_gradient(jax.grad(total)(perturb_BTD))

  def add(self, sums: Sums, others: Sums, weight: float) -> Sums:
    """The sums with `weight` times the losses among the others on top."""
    return sums | {name: sums[name] + weight * others[name] for name in self.coefficients if name in others}


@dataclasses.dataclass(frozen=True)
class Regularizer:
  """Base of all regularizers; frozen, so that equal ones share compiled steps."""

  # Whether it compares predictions, so that a task without a cross-entropy gives it nothing to do.
  compares: ClassVar[bool] = True

  def sums(self, passes: Passes, rng: jax.Array) -> Sums:
    """The sums of the loss to train on, by the names that a plain pass gives; additive over rows."""
    raise NotImplementedError
