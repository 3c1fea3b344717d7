"""The tasks of a run as one objective: sums, denominators and coefficients over one batch, by '<task>/<name>'."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lm.models.model import Forward, Intercept, Model
from lm.shapes import INPUTS, Batch
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
    return {f"{key}/{name}": value for key, task in self.tasks for name, value in task.coefficients.items()}

  def denominators(self, batch: Batch) -> dict[str, jax.Array]:
    """By name; of the whole global batch."""
    return self._collect(lambda task, view: task.denominators(view), batch)

  def sums(self, params: dict, batch: Batch, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """By name; additive over rows. rng: dropout is on where it is given."""
    forward = self._forward(params)
    return self._collect(lambda task, view: task.loss(forward.for_head(task.head), view, rng), batch)

  def predict(self, params: dict, batch: Batch) -> dict[str, jax.Array]:
    """Per-row predictions, by '<task>/<name>'."""
    forward = self._forward(params)
    return self._collect(lambda task, view: task.predict(forward.for_head(task.head), view), batch)

  def only(self, key: str) -> "Objective":
    """The objective of one of the tasks, for evaluation of one stream."""
    return dataclasses.replace(self, tasks=tuple((k, task) for k, task in self.tasks if k == key))

  def _forward(self, params: dict) -> Forward:
    return Forward(self.model, params, self.intercept, loss_chunk=self.loss_chunk)

  def _collect(self, function, batch: Batch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, task in self.tasks:
      view: Mapping[str, Any] = {**batch[INPUTS], **batch[key]}
      found |= {f"{key}/{name}": value for name, value in function(task, view).items()}
    return found
