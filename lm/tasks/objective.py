"""The tasks of a run as one objective: sums, denominators and coefficients over one batch, by '<task>/<name>'."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.models.model import Intercept, Model
from lm.shapes import INPUTS, Batch
from lm.tasks.forward import Forward
from lm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Objective:
  """tasks: (key of the task's arrays in the batch, task). intercept: the PEFT method's, entered inside the trace."""

  model: Model
  tasks: tuple[tuple[str, Task], ...]
  intercept: Intercept | None = None
  loss_chunk: int = 0

  @property
  def coefficients(self) -> dict[str, float]:
    """Weight in the total loss, of the names that have one."""
    of_tasks = {f"{key}/{name}": value for key, task in self.tasks for name, value in task.coefficients.items()}
    return of_tasks | self._router_weights

  def denominators(self, batch: Batch) -> dict[str, jax.Array]:
    """By name; of the whole global batch."""
    num_tokens = jnp.sum(batch[INPUTS]["segment_ids"] > 0).astype(jnp.float32)
    return self._collect(lambda task, view: task.denominators(view), batch) | dict.fromkeys(self._router_weights, num_tokens)

  def sums(self, params: dict, batch: Batch, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """By name; additive over rows. rng: dropout is on where it is given."""
    forward = self._forward(params)
    found = self._collect(lambda task, view: task.loss(forward.for_head(task.head), view, rng), batch)
    if not self._router_weights:
      return found
    sums = forward.router(dict(batch[INPUTS]), rng)
    return found | {name: sums[f"{name.removeprefix('router/')}_B"].sum() for name in self._router_weights}

  def predict(self, params: dict, batch: Batch) -> dict[str, jax.Array]:
    """Per-row predictions, by '<task>/<name>'."""
    forward = self._forward(params)
    return self._collect(lambda task, view: task.predict(forward.for_head(task.head), view), batch)

  def only(self, key: str) -> "Objective":
    """The objective of one of the tasks, for evaluation of one stream."""
    return dataclasses.replace(self, tasks=tuple((k, task) for k, task in self.tasks if k == key))

  @property
  def _router_weights(self) -> dict[str, float]:
    """What the experts' router adds to the loss, where it has a weight."""
    cfg = self.model.cfg
    weights = {"router/balance": cfg.balance_weight, "router/z": cfg.router_z_weight}
    return {name: weight for name, weight in weights.items() if weight and cfg.num_experts}

  def _forward(self, params: dict) -> Forward:
    return Forward(self.model, params, self.intercept, loss_chunk=self.loss_chunk)

  def _collect(self, function, batch: Batch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, task in self.tasks:
      view: Mapping[str, Any] = {**batch[INPUTS], **batch[key]}
      found |= {f"{key}/{name}": value for name, value in function(task, view).items()}
    return found
