"""Averages of parameters: what is evaluated and saved may be a mean of what the optimizer moves.

With one, `params` of the state is the average x, and the state also has the moving parameters z. Everything that reads a
model, evaluation, checkpoints, inference, reads x and knows nothing of it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

State = dict[str, Any]


class Average:
  """None: what the optimizer moves is what is read. The base of those that average."""

  def init(self, params: Any) -> State:
    """What the state has beside `params`, x at the start."""
    del params
    return {}

  def moving(self, params: Any, state: State) -> Any:
    """z, which the optimizer moves."""
    del state
    return params

  def point(self, params: Any, state: State) -> Any:
    """Where the gradient is taken."""
    return self.moving(params, state)

  def update(self, params: Any, moved: Any, state: State, step: jax.Array) -> tuple[Any, State]:
    """x and the state after z has moved."""
    del params, step
    return moved, state


@dataclasses.dataclass(frozen=True)
class Ema(Average):
  """x <- r x + (1 - r) z with r = min(rate, (1 + step) / (10 + step)), so that the start is soon forgotten."""

  rate: float

  def init(self, params):
    return {"moving": jax.tree.map(jnp.copy, params)}

  def moving(self, params, state):
    return state["moving"]

  def update(self, params, moved, state, step):
    rate = jnp.minimum(self.rate, (1 + step) / (10 + step))
    return _mix(params, moved, 1 - rate), {"moving": moved}


@dataclasses.dataclass(frozen=True)
class Weighted(Average):
  """Schedule-free averaging (Defazio et al. 2024): x is the mean of all z, weighted by the squared learning rate.

  The gradient is taken at y = (1 - momentum) z + momentum x.
  """

  momentum: float
  schedule: optax.Schedule

  def init(self, params):
    return {"moving": jax.tree.map(jnp.copy, params), "weight": jnp.zeros(())}

  def moving(self, params, state):
    return state["moving"]

  def point(self, params, state):
    return _mix(state["moving"], params, self.momentum)

  def update(self, params, moved, state, step):
    own = jnp.square(self.schedule(step))
    weight = state["weight"] + own
    return _mix(params, moved, own / weight), {"moving": moved, "weight": weight}


def _mix(a: Any, b: Any, share: Any) -> Any:
  """(1 - share) a + share b, and exactly a where both are the same."""
  return jax.tree.map(lambda a, b: a + share * (b - a), a, b)
