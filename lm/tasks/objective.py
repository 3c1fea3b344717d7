"""The tasks of a run as one objective: sums, denominators and coefficients over one batch, by '<task>/<name>'.

Streams of one task share its arrays and one pass through its head. Their sums are there apart, by '<stream>/<name>', and
together by '<stream>+<stream>/<name>', which is what is minimised.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.models.model import Intercept, Model
from lm.regularizers.regularizer import Passes, Regularizer
from lm.shapes import INPUTS, Batch
from lm.tasks.cross_entropy import PLAIN, Softening
from lm.tasks.forward import ONCE, Forward, Pass, Read
from lm.tasks.task import Task

TaskFunction = Callable[[Task, dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Objective:
  """tasks: (key of the task's arrays in the batch, task). intercept: the PEFT method's, entered inside the trace.

  streams: (key, names of its streams) of each task that has several. softening, regularizer: of the loss that is
  trained on; evaluation finds the plain one.
  """

  model: Model
  tasks: tuple[tuple[str, Task], ...]
  intercept: Intercept | None = None
  loss_chunk: int = 0
  streams: tuple[tuple[str, tuple[str, ...]], ...] = ()
  softening: Softening = PLAIN
  regularizer: Regularizer | None = None

  @property
  def coefficients(self) -> dict[str, float]:
    """Weight in the total loss, of the names that have one."""
    labels = {key: "+".join(names) for key, names in self.streams}
    of_tasks = {f"{labels.get(k, k)}/{name}": value for k, task in self.tasks for name, value in task.coefficients.items()}
    return of_tasks | self._router_weights

  @property
  def needs_reference(self) -> bool:
    """Whether a task compares with the model that the run started from."""
    return any(task.needs_reference for _, task in self.tasks)

  @property
  def needs_whole_batch(self) -> bool:
    """Whether a task compares the rows of a batch with each other."""
    return any(task.needs_whole_batch for _, task in self.tasks)

  def denominators(self, batch: Batch) -> dict[str, jax.Array]:
    """By name; of the whole global batch."""
    num_tokens = jnp.sum(batch[INPUTS]["segment_ids"] > 0).astype(jnp.float32)
    return self._collect(lambda task, view: task.denominators(view), batch) | dict.fromkeys(self._router_weights, num_tokens)

  def sums(self, params: dict, batch: Batch, rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """By name; additive over rows, but for a task that `needs_whole_batch`.

    rng: dropout, softening and the regularizer are on where it is given.
    """
    if rng is None or self.regularizer is None:
      return self._pass(params, batch, rng)[0]
    inputs = batch[INPUTS]
    shape = (*inputs["tokens"].shape, self.model.cfg.model_dim)
    run = lambda params, rng, **how: self._pass(params, batch, rng, Pass(**how))
    return self.regularizer.sums(Passes(run, params, self.coefficients, shape, inputs["row"]), rng)

  def predict(self, params: dict, batch: Batch) -> dict[str, jax.Array]:
    """Per-row predictions, by '<task>/<name>'."""
    forward = self._forward(params)
    one = dataclasses.replace(self, streams=())
    return one._collect(lambda task, view: task.predict(forward.for_head(task.head), view), batch)

  def only(self, key: str) -> "Objective":
    """The objective of one of the tasks, for evaluation of one stream."""
    return dataclasses.replace(self, tasks=tuple((k, task) for k, task in self.tasks if k == key), streams=())

  @property
  def _router_weights(self) -> dict[str, float]:
    """What the experts' router adds to the loss, where it has a weight."""
    cfg = self.model.cfg
    weights = {"router/balance": cfg.balance_weight, "router/z": cfg.router_z_weight}
    return {name: weight for name, weight in weights.items() if weight and cfg.num_experts}

  def _pass(
    self, params: dict, batch: Batch, rng: jax.Array | None, how: Pass = ONCE
  ) -> tuple[dict[str, jax.Array], tuple[Read, ...]]:
    """The sums of one pass, and what its cross-entropies read. Of a comparison, only what it compared."""
    softening = PLAIN if rng is None else self.softening
    forward = Forward(self.model, params, self.intercept, loss_chunk=self.loss_chunk, softening=softening, how=how)

    def loss(task: Task, view: dict[str, Any]) -> dict[str, Any]:
      before = len(forward.read)
      sums = task.loss(forward.for_head(task.head), view, rng)
      return sums if how.mix[0] or len(forward.read) > before else {}

    found = self._collect(loss, batch)
    compares = self.regularizer is not None and self.regularizer.compares
    if rng is not None and (self.softening != PLAIN or compares) and not forward.read:
      setting = "config.regularizer" if compares else "config.label_smoothing and config.z_loss"
      raise ValueError(f"{setting}: no task of this run has a cross-entropy that it could change; leave it unset")
    if self._router_weights and how.mix[0]:
      sums = forward.router(dict(batch[INPUTS]), rng)
      found |= {name: sums[f"{name.removeprefix('router/')}_B"].sum() for name in self._router_weights}
    return found, tuple(forward.read)

  def _forward(self, params: dict) -> Forward:
    return Forward(self.model, params, self.intercept, loss_chunk=self.loss_chunk)

  def _collect(self, function: TaskFunction, batch: Batch) -> dict[str, Any]:
    several, found = dict(self.streams), {}
    for key, task in self.tasks:
      view, names = {**batch[INPUTS], **batch[key]}, several.get(key, ())
      values = {key: function(task, view)} if not names else _apart(function, task, view, names)
      found |= {f"{label}/{name}": value for label, part in values.items() for name, value in part.items()}
    return found


def _apart(function: TaskFunction, task: Task, view: dict[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
  """Additive values of each stream's rows, and of all of them. Only weights are copied: the model and its head run once."""
  weights = {name: value for name, value in view.items() if name.endswith("weights")}
  assert weights, f"{task}: without weights its streams cannot be told apart"

  def of_stream(stream: jax.Array) -> dict[str, Any]:
    mine_B = view["stream"] == stream
    return function(task, view | {name: x * mine_B.reshape(-1, *[1] * (x.ndim - 1)) for name, x in weights.items()})

  apart = jax.vmap(of_stream)(jnp.arange(len(names)))
  of = {stream: jax.tree.map(lambda x, i=i: x[i], apart) for i, stream in enumerate(names)}
  return of | {"+".join(names): jax.tree.map(lambda x: x.sum(0), apart)}
