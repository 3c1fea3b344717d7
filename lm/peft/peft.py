"""The contract of a fine-tuning method. The base class trains everything and adds nothing."""

import dataclasses
from typing import Any, ClassVar

import jax
import numpy as np

from lm.models.model import Intercept


@dataclasses.dataclass(frozen=True)
class Peft:
  """Base of all methods; frozen, so that a method is a value and equal methods share compiled steps."""

  # Positions that `prepare` must leave free at the start of a sequence.
  num_virtual_tokens: ClassVar[int] = 0
  # Whether the model is unchanged right after `attach`, and whether `merge` is possible: contract tests read both.
  identity_at_init: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  def attach(self, params: dict, rng: jax.Array) -> dict:
    """Adds leaves to the boxed parameters (with logical axis names), once the base is there."""
    del rng
    return params

  def trainable(self, name: str) -> bool | np.ndarray:
    """Whether the parameter trains; for a stacked leaf possibly a boolean vector over its L layers."""
    raise NotImplementedError

  @property
  def intercept(self) -> Intercept | None:
    """A flax interceptor around the model's modules, or None."""
    return None

  def penalties(self, params: dict) -> dict[str, jax.Array]:
    """Terms to add to the loss, by name."""
    del params
    return {}

  def init_state(self, params: dict) -> Any:
    """State that the method carries from step to step; part of the checkpoint."""
    del params
    return {}

  def after_update(self, params: dict, grads: dict, state: Any, step: jax.Array) -> tuple[dict, Any]:
    """Changes parameters and state after the optimizer's update, inside the jitted step."""
    del grads, step
    return params, state

  def merge(self, params: dict) -> dict:
    """Plain parameters of the same function, without the method's leaves."""
    return params
