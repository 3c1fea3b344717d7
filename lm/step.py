"""The pure train and eval steps. What to minimise and how to update arrive as values; nothing here knows a task or a mesh.

Gradients add: every micro-batch differentiates coefficient * sum / denominator with the denominators of the whole global
batch, so accumulation changes nothing but the order of additions.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lm import tree
from lm.shapes import Batch
from lm.state import NEVER, TrainState

Metrics = dict[str, Any]

# Dynamic loss scaling (Micikevicius et al. 2017): where the scale starts, and after how many good steps it doubles.
FIRST_LOSS_SCALE = 2.0**15
GROWTH_STEPS = 2000


class Objective(Protocol):
  """What the tasks of a run add up to (lm.tasks.objective)."""

  @property
  def coefficients(self) -> dict[str, float]: ...
  def denominators(self, batch: Batch) -> dict[str, jax.Array]: ...
  def sums(self, params: dict, batch: Batch, rng: jax.Array | None = None) -> dict[str, jax.Array]: ...
  def predict(self, params: dict, batch: Batch) -> dict[str, jax.Array]: ...


class Tuner(Protocol):
  """The part of a PEFT method that a step calls (lm.peft.peft)."""

  def penalties(self, params: dict) -> dict[str, jax.Array]: ...
  def after_update(self, params: dict, grads: dict, state: Any, step: jax.Array) -> tuple[dict, Any]: ...
  def after_average(self, params: dict, moved: dict) -> dict: ...


class Average(Protocol):
  """The parameters that are read, as a mean of those that move (lm.optim.average)."""

  def moving(self, params: Any, state: Any) -> Any: ...
  def point(self, params: Any, state: Any) -> Any: ...
  def update(self, params: Any, moved: Any, state: Any, step: jax.Array) -> tuple[Any, Any]: ...


class Moves(Protocol):
  """What an optimizer does (lm.optim.optimizer)."""

  @property
  def update(self) -> Callable[..., tuple[Any, Any]]: ...
  @property
  def average(self) -> Average: ...


def make_train_step(
  objective: Objective,
  moves: Moves,
  tuner: Tuner,
  starts: Mapping[str, np.ndarray],
  accumulation: int,
  place: Callable[[dict], dict] = lambda params: params,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds step(state, batch, rng) -> (state, metrics).

  Args:
    starts: name -> the step from which a parameter trains, int32, of a stacked leaf one for each layer [L] or one for all;
      one without trains from the first step on. NEVER for layers that do not.
    accumulation: micro-batches per step; divides the batch's rows.
    place: puts parameters on their shardings, and so, being linear, their gradient: each micro-batch's is scattered.

  The step's metrics are {"sums": {name: sum}, "weights": {name: denominator}, "loss": total, "grad_norm": global norm of
  what trains at this step, "loss_scale": the state's}. With a loss scale, a step whose gradient overflows changes nothing but
  the scale.
  """

  def train_step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(rng, state.step)
    weights = objective.denominators(batch)
    scale = state.loss_scale.get("scale", 1.0)

    def loss(params, micro):
      full = tree.merge(place(params), state.frozen)
      sums = objective.sums(full, micro, rng)
      terms = [c * sums[name] / jnp.maximum(weights[name], 1e-9) for name, c in objective.coefficients.items()]
      terms += [value / accumulation for value in tuner.penalties(full).values()]
      return scale * sum(terms), sums

    point = moves.average.point(state.params, state.average)
    (total, sums), grads = _accumulate(jax.value_and_grad(loss, has_aux=True), point, batch, accumulation)
    grads = _select({name: start < NEVER for name, start in starts.items()}, jax.tree.map(lambda x: x / scale, grads))
    started = {name: state.step >= start for name, start in starts.items()}
    counted = _select(started, grads)
    moving = moves.average.moving(state.params, state.average)
    updates, opt_state = moves.update(grads, state.opt_state, point, counted=counted)
    moved: Any = _select(started, optax.apply_updates(moving, updates), moving)
    moved, peft_state = tuner.after_update(moved, counted, state.peft_state, state.step)
    params, average = moves.average.update(state.params, moved, state.average, state.step)
    params = tuner.after_average(params, moved)
    new = state.replace(step=state.step + 1, params=params, opt_state=opt_state, peft_state=peft_state, average=average)
    if state.loss_scale:
      new = _skip_overflow(state, new, jnp.isfinite(optax.tree.norm(grads)))
    metrics = {"sums": sums, "weights": weights, "loss": total / scale, "grad_norm": optax.tree.norm(counted)}
    return new, metrics | {"loss_scale": new.loss_scale}

  return train_step


def make_eval_step(objective: Objective) -> Callable[[dict, Batch], Metrics]:
  """Builds step(params, batch) -> {"sums", "weights", "predictions"} without noise; params is the full tree."""

  def eval_step(params: dict, batch: Batch) -> Metrics:
    return {
      "sums": objective.sums(params, batch),
      "weights": objective.denominators(batch),
      "predictions": objective.predict(params, batch),
    }

  return eval_step


def _accumulate(grad_of: Callable, params: dict, batch: Batch, accumulation: int) -> Any:
  """Adds ((total, sums), grads) over micro-batches: rows r, r + A, ... of a micro-batch stay on their device."""
  if accumulation == 1:
    return grad_of(params, batch)
  micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
  body = lambda carry, part: (jax.tree.map(jnp.add, carry, grad_of(params, part)), None)
  first = jax.tree.map(lambda x: x[0], micro)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad_of, params, first))
  return jax.lax.scan(body, zeros, micro)[0]


def init_loss_scale(dtype: str) -> dict[str, jax.Array]:
  """The part of the state that float16 needs, whose gradients would vanish unscaled; {} for other compute types."""
  if dtype != "float16":
    return {}
  return {"scale": jnp.float32(FIRST_LOSS_SCALE), "good_steps": jnp.int32(0), "skipped": jnp.int32(0)}


def _skip_overflow(old: TrainState, new: TrainState, finite: jax.Array) -> TrainState:
  """The new state where the gradient is finite, else the old one with its step counted and its scale halved."""
  scale, skipped = old.loss_scale["scale"], old.loss_scale["skipped"]
  good = jnp.where(finite, old.loss_scale["good_steps"] + 1, 0)
  grows = good == GROWTH_STEPS
  loss_scale = {
    "scale": jnp.where(finite, jnp.where(grows, 2 * scale, scale), scale / 2),
    "good_steps": jnp.where(grows, 0, good),
    "skipped": skipped + jnp.where(finite, 0, 1),
  }
  kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
  return kept.replace(step=new.step, loss_scale=loss_scale)


def _select(chosen: Mapping[str, ArrayLike], values: Any, others: Any = None) -> Any:
  """values where chosen says so, by name a scalar or one for each layer; elsewhere those of others, without them zeros.

  A choice, not a product: what is left out may be nan, and a parameter keeps all of its bits.
  """
  if not chosen:
    return values
  rest = tree.flatten(others or {})

  def select(name: str, x: jax.Array) -> jax.Array:
    if name not in chosen:
      return x
    keep = jnp.asarray(chosen[name])
    return jnp.where(keep.reshape(*keep.shape, *[1] * (x.ndim - keep.ndim)), x, rest.get(name, jnp.zeros_like(x)))

  return tree.map_named(select, values)
