"""AdaLoRA (Zhang et al. 2023): products P Lambda Q whose ranks are pruned while training, where they matter least.

A triplet is a column of P, its value in Lambda and a row of Q. Its importance is that of its value and the means of those of
its vectors, each of them a running sensitivity |parameter * gradient| times its running uncertainty. The number of values
that are kept of all layers together falls as a cubic of the step; the others are zero, and free to return until it is final.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import duration, tree
from lm.peft.lora import Leaves, LowRank

STDDEV = 0.02  # of both vectors at the start; values start at zero


@dataclasses.dataclass(frozen=True)
class Adalora(LowRank):
  """Leaves `a` (P), `lambda` [..., 1, rank] and `b` (Q) beside each kernel; ranks are in summary.json when a run ends.

  Raises:
    ValueError: an option out of its range; by `resolve`, pruning that does not end behind its start and within the run.
  """

  leaf_dims: ClassVar = {**LowRank.leaf_dims, "lambda": (None, "rank")}

  initial_rank: int = 12  # of every product at the start
  target_rank: int = 8  # what is left of it when pruning ends, on average over layers and modules
  prune_from: int | str = "10%"  # [steps] or a share of total_steps: how long nothing is pruned
  prune_until: int | str = "70%"  # [steps] or a share of total_steps: from then on target_rank is left, and the choice is final
  prune_every: int = 10  # [steps] between two choices of what is kept
  beta1: float = 0.85  # decay of the running sensitivity
  beta2: float = 0.85  # decay of its running uncertainty
  orthogonality: float = 0.5  # weight in the loss of |P^T P - I| and |Q Q^T - I|, averaged over all of them

  def __post_init__(self):
    super().__post_init__()
    if not 1 <= self.target_rank <= self.initial_rank:
      raise ValueError(f"peft.target_rank={self.target_rank}: must be 1 to peft.initial_rank={self.initial_rank}")
    if self.prune_every < 1:
      raise ValueError(f"peft.prune_every={self.prune_every}: must be at least 1")
    for name in ("beta1", "beta2"):
      if not 0 < getattr(self, name) < 1:
        raise ValueError(f"peft.{name}={getattr(self, name)}: must be between 0 and 1")
    if self.orthogonality < 0:
      raise ValueError(f"peft.orthogonality={self.orthogonality}: must not be negative")

  @property
  def scale(self):
    return self.alpha / self.initial_rank

  def resolve(self, total_steps):
    moments = {
      name: duration.steps(getattr(self, name), f"peft.{name}", total_steps=total_steps)
      for name in ("prune_from", "prune_until")
    }
    if not moments["prune_from"] < moments["prune_until"] <= total_steps:
      raise ValueError(
        f"peft.prune_until={self.prune_until!r}: must be behind peft.prune_from={self.prune_from!r} and within"
        f" total_steps={total_steps}"
      )
    return dataclasses.replace(self, **moments)

  def start(self, kernel, rng):
    *layers, inputs, outputs = kernel.shape
    draw = lambda i, *dims: STDDEV * jax.random.normal(jax.random.fold_in(rng, i), (*layers, *dims))
    values = jnp.zeros((*layers, 1, self.initial_rank))
    return kernel, {"a": draw(0, inputs, self.initial_rank), "lambda": values, "b": draw(1, self.initial_rank, outputs)}

  def attach(self, params, rng):
    boxes = tree.flatten(super().attach(params, rng))
    for name in (name for name in boxes if name.endswith(f"/lora/{self.adapter}/lambda")):
      values = boxes[name].value  # whole on every device: they are few, and every process reports ranks
      boxes[name] = nn.LogicallyPartitioned(values, (None,) * values.ndim)
    return tree.unflatten(boxes)

  def factors(self, leaves):
    return leaves["a"] * leaves["lambda"], leaves["b"]

  def penalties(self, params):
    if not self.orthogonality:
      return {}
    squares = []
    for leaves in self.leaves(tree.flatten(params)).values():
      a, b = leaves["a"], leaves["b"]
      squares += [_distance(a.mT @ a).ravel(), _distance(b @ b.mT).ravel()]
    return {"orthogonality": self.orthogonality * jnp.concatenate(squares).mean()}

  def init_state(self, params):
    """Running sensitivity and uncertainty of each leaf, and which values were kept when they were chosen last."""
    own = {name: leaf for name, leaf in tree.flatten(params).items() if f"/lora/{self.adapter}/" in name}
    zeros = lambda: tree.unflatten({name: jnp.zeros(leaf.shape) for name, leaf in own.items()})
    kept = {name: jnp.ones(leaf.shape, bool) for name, leaf in own.items() if name.endswith("/lambda")}
    return {"sensitivity": zeros(), "uncertainty": zeros(), "kept": tree.unflatten(kept)}

  def after_update(self, params, grads, state, step):
    assert isinstance(self.prune_from, int) and isinstance(self.prune_until, int), "durations are resolved before a step"
    taken = step + 1
    measured = self._measure(tree.flatten(params), tree.flatten(grads), state)
    state = state | jax.tree.map(lambda new, old: jnp.where(taken < self.prune_until, new, old), measured, _moments(state))
    chooses = (taken > self.prune_from) & (taken < self.prune_until) & (taken % self.prune_every == 0)
    chooses |= taken == self.prune_until
    chooses |= (taken > self.prune_until) & self._keeps_too_many(state["kept"])  # a step of fp16 that was skipped
    kept = jax.lax.cond(chooses, lambda: self._choose(state, self.budget_share(taken)), lambda: state["kept"])
    flat, masks = tree.flatten(params), tree.flatten(kept)
    applies = chooses | (taken > self.prune_until)
    flat |= {name: jnp.where(mask | ~applies, flat[name], 0) for name, mask in masks.items()}
    return tree.unflatten(flat), state | {"kept": kept}

  def after_average(self, params, moved):
    flat, now = tree.flatten(params), tree.flatten(moved)
    flat |= {name: jnp.where(now[name] == 0, 0, flat[name]) for name in flat if name.endswith(f"/lora/{self.adapter}/lambda")}
    return tree.unflatten(flat)

  def budget_share(self, taken: jax.Array) -> jax.Array:
    """Average rank that is left after so many steps: from `initial_rank` down to `target_rank` as a cubic."""
    assert isinstance(self.prune_from, int) and isinstance(self.prune_until, int)
    left = 1 - jnp.clip((taken - self.prune_from) / (self.prune_until - self.prune_from), 0, 1)
    return self.target_rank + (self.initial_rank - self.target_rank) * left**3

  def report(self, params):
    values = {module: np.asarray(leaves["lambda"]) for module, leaves in self.leaves(tree.flatten(params)).items()}
    return {f"rank/{module}": np.count_nonzero(value, axis=(-2, -1)).tolist() for module, value in values.items()}

  def _measure(self, params: dict[str, Any], grads: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Sensitivity and uncertainty after one more gradient."""
    before = {name: tree.flatten(part) for name, part in _moments(state).items()}
    sensitivity, uncertainty = {}, {}
    for name, mean in before["sensitivity"].items():
      now = jnp.abs(params[name] * grads[name])
      sensitivity[name] = self.beta1 * mean + (1 - self.beta1) * now
      change = jnp.abs(now - sensitivity[name])
      uncertainty[name] = self.beta2 * before["uncertainty"][name] + (1 - self.beta2) * change
    return {"sensitivity": tree.unflatten(sensitivity), "uncertainty": tree.unflatten(uncertainty)}

  def _choose(self, state: dict[str, Any], share: jax.Array) -> dict[str, Any]:
    """The values of the most important triplets, as many as the average rank says; of equals the first."""
    score = jax.tree.map(jnp.multiply, state["sensitivity"], state["uncertainty"])
    modules = self.leaves(tree.flatten(score))
    scores = [_importance(leaves) for leaves in modules.values()]
    everything = jnp.concatenate([x.ravel() for x in scores])
    place = jnp.argsort(jnp.argsort(-everything, stable=True), stable=True)
    kept = place < self._budget(share, everything.size)
    parts = jnp.split(kept, np.cumsum([x.size for x in scores])[:-1])
    names = (f"{module}/lora/{self.adapter}/lambda" for module in modules)
    return tree.unflatten({name: part.reshape(x.shape) for name, part, x in zip(names, parts, scores, strict=True)})

  def _budget(self, share: Any, num_values: int) -> jax.Array:
    """How many of all values an average rank leaves."""
    return jnp.floor(share * (num_values // self.initial_rank))

  def _keeps_too_many(self, kept: dict[str, Any]) -> jax.Array:
    masks = jax.tree.leaves(kept)
    return sum(jnp.sum(mask) for mask in masks) > self._budget(self.target_rank, sum(mask.size for mask in masks))


def _moments(state: dict[str, Any]) -> dict[str, Any]:
  return {name: state[name] for name in ("sensitivity", "uncertainty")}


def _importance(scores: Leaves) -> jax.Array:
  """Of each triplet [..., 1, rank], of the scores of its value and its vectors."""
  of_rows = scores["b"].mean(-1, keepdims=True).mT
  return scores["lambda"] + scores["a"].mean(-2, keepdims=True) + of_rows


def _distance(gram: jax.Array) -> jax.Array:
  """[..., r, r] -> [...]: the Frobenius norm of what is between it and the identity; its gradient is 0 where that is 0."""
  identity = jnp.eye(gram.shape[-1]).reshape((1,) * (gram.ndim - 2) + gram.shape[-2:])
  square = jnp.square(gram - identity).sum((-2, -1))
  return jnp.sqrt(jnp.maximum(square, 1e-12))
