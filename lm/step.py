"""The pure train and eval steps. What to minimise and how to update arrive as values; nothing here knows a task or a mesh.

Gradients add: every micro-batch differentiates coefficient * sum / denominator with the denominators of the whole global
batch, so accumulation changes nothing but the order of additions.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from lm import tree
from lm.shapes import Batch
from lm.state import TrainState

Metrics = dict[str, Any]


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


def make_train_step(
  objective: Objective, optimizer: optax.GradientTransformation, tuner: Tuner, layer_masks: dict, accumulation: int
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
  """Builds step(state, batch, rng) -> (state, metrics).

  Args:
    layer_masks: name -> [L] fp32 vector for stacked leaves of which only some layers train.
    accumulation: micro-batches per step; divides the batch's rows.

  The step's metrics are {"sums": {name: sum}, "weights": {name: denominator}, "loss": total, "grad_norm": global norm}.
  """

  def train_step(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, Metrics]:
    rng = jax.random.fold_in(rng, state.step)
    weights = objective.denominators(batch)

    def loss(params, micro):
      full = tree.merge(params, state.frozen)
      sums = objective.sums(full, micro, rng)
      terms = [c * sums[name] / jnp.maximum(weights[name], 1e-9) for name, c in objective.coefficients.items()]
      terms += [value / accumulation for value in tuner.penalties(full).values()]
      return sum(terms), sums

    (total, sums), grads = _accumulate(jax.value_and_grad(loss, has_aux=True), state.params, batch, accumulation)
    grads = _mask_layers(grads, layer_masks)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, _mask_layers(updates, layer_masks))
    params, peft_state = tuner.after_update(params, grads, state.peft_state, state.step)
    metrics = {"sums": sums, "weights": weights, "loss": total, "grad_norm": optax.tree.norm(grads)}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state, peft_state=peft_state), metrics

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


def _mask_layers(values: Any, layer_masks: dict) -> Any:
  if not layer_masks:
    return values
  scale = lambda name, x: x * layer_masks[name].reshape(-1, *[1] * (x.ndim - 1)) if name in layer_masks else x
  return tree.map_named(scale, values)
