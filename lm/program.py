"""The compiled side of a run: abstract state, its shardings, and the executables of every declared shape.

Shape first, then shard, then materialise; the same abstract state serves initialisation, restore and compilation.
Everything is compiled ahead of time: an undeclared shape is an error, never a silent recompilation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import metrics, sharding, tree
from lm.models.model import Model
from lm.optim.optimizer import Optimizer
from lm.peft.peft import Peft
from lm.quantizers.quantizer import is_packed
from lm.shapes import INPUTS, Batch
from lm.state import NEVER, REFERENCE, TrainState
from lm.step import init_loss_scale, make_eval_step, make_train_step
from lm.tasks.objective import Objective


@dataclasses.dataclass(frozen=True)
class Spec:
  """Everything that decides the executables. No seed and no data: runs that differ only there share one program."""

  model: Model
  objective: Objective
  peft: Peft
  optimizer: Optimizer
  total_steps: int
  accumulation: int
  mesh: jax.sharding.Mesh
  sharding: tuple[str, ...] = ()


class Program:
  """The state and the steps of one `Spec`."""

  def __init__(self, spec: Spec):
    self.spec = spec
    rng = jax.random.key(0)
    boxed = jax.eval_shape(lambda rng: self._init_params(rng, {})[1], rng)
    self.axes = sharding.logical_axes(boxed)
    self.places = sharding.places(boxed, spec.mesh, spec.sharding)
    self.trainable = {name: not is_packed(name) and spec.peft.trainable(name) for name in self.axes}
    if not any(self.trainable.values()):
      raise ValueError(f"config.peft={spec.peft}: no parameter trains")
    self._starts = self._find_starts()
    trained = {name: axes for name, axes in self.axes.items() if self.trainable[name]}
    self._moves = spec.optimizer.make(spec.total_steps, trained, spec.model.cfg.num_layers)
    self.abstract = jax.eval_shape(self._init_state, rng, {})
    by_name = {name: place.sharding for name, place in self.places.items()}
    self._shardings = sharding.param_shardings(self.abstract, by_name, spec.mesh)
    self._compiled: dict[Any, Any] = {}

  @property
  def num_params(self) -> dict[str, int]:
    """Scalars in all parameters, and in those that train, frozen layers of a leaf left out; a reference's are in neither."""
    flat = tree.flatten(self.abstract.params)
    share = lambda name: np.mean(self._starts[name] < NEVER) if name in self._starts else 1.0
    trainable = sum(round(leaf.size * share(name)) for name, leaf in flat.items())
    total = sum(self._size(name, leaf) for part in self._model_parts for name, leaf in tree.flatten(part).items())
    return {"total": total, "trainable": trainable}

  def flops_per_token(self, seq_len: int) -> float:
    """Of the train step, by `metrics.flops_per_token`; of experts, those that a token is sent to count.

    A reference that a task compares with is a forward pass more, a third of a step in which everything trains.
    """
    cfg = self.spec.model.cfg
    share = cfg.experts_per_token / cfg.num_experts if cfg.num_experts else 1.0
    size = lambda name, leaf: self._size(name, leaf) * (share if "experts" in self.axes[name][:-1] else 1.0)
    trainable, frozen = (sum(size(name, leaf) for name, leaf in tree.flatten(part).items()) for part in self._model_parts)
    of_step = lambda trains: metrics.flops_per_token(
      trainable + frozen, trains, cfg.num_layers, cfg.num_heads * cfg.channels, seq_len
    )
    return of_step(trainable) + (of_step(trainable + frozen) / 3 if self.spec.objective.needs_reference else 0.0)

  @property
  def _model_parts(self) -> tuple[dict, dict]:
    """The parameters that train, and the frozen ones that the model itself has."""
    return self.abstract.params, {name: part for name, part in self.abstract.frozen.items() if name != REFERENCE}

  def _size(self, name: str, leaf: Any) -> int:
    """Scalars that a parameter stands for."""
    quantizer = self.spec.model.quantizer
    return quantizer.num_weights(name, leaf.size) if quantizer else leaf.size

  @property
  def abstract_sharded(self) -> TrainState:
    """The state's shapes with the shardings they live on, for restoring a checkpoint."""
    with_sharding = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return jax.tree.map(with_sharding, self.abstract, self._shardings)

  def init(self, rng: jax.Array, base: dict[str, Any]) -> TrainState:
    """A fresh state, created in place on its shardings.

    Args:
      base: parameters by name that replace random ones (names of the model before the PEFT method adds its own).
    """
    key = ("init", *((name, leaf.shape) for name, leaf in sorted(base.items())))
    with sharding.use(self.spec.mesh):
      if key not in self._compiled:
        self._compiled[key] = jax.jit(self._init_state, out_shardings=self._shardings).lower(rng, base).compile()
      return self._compiled[key](rng, base)

  def compile(self, batches: Sequence[Batch], eval_batches: list[tuple[str, Batch]]) -> None:
    """Compiles the train step for every shape of `batches`, and the eval step for every (task key, shape)."""
    for batch in batches:
      self.train_step(batch)
    for key, batch in eval_batches:
      self._eval_step(key, batch)

  def train(self, state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer step; the old state's buffers are given to the new one.

    The metrics are those of `make_train_step`, and "row_tokens": real positions of each row of the global batch, [B].
    """
    return self._declared("train", batch)(state, batch, rng)

  def evaluate(self, key: str, params: dict, batch: Batch) -> dict[str, Any]:
    """Sums, weights and predictions of one task's batch. params: the full tree."""
    return self._declared(("eval", key), batch)(params, batch)

  def _declared(self, kind: Any, batch: Batch):
    """The executable of a shape; compiling it now would stall a run without a word."""
    compiled = self._compiled.get((kind, _signature(batch)))
    if compiled is None:
      raise RuntimeError(f"batch of a shape that was not declared before the first step: {_signature(batch)}")
    return compiled

  def train_step(self, batch: Batch) -> jax.stages.Compiled:
    """The compiled train step of a batch's shape."""
    spec = self.spec
    place = lambda params: jax.lax.with_sharding_constraint(params, self._shardings.params)
    step = make_train_step(spec.objective, self._moves, spec.peft, self._starts, spec.accumulation, place)

    def counted(state: TrainState, batch: Batch, rng: jax.Array) -> tuple[TrainState, dict[str, Any]]:
      new, metrics = step(state, batch, rng)
      return new, metrics | {"row_tokens": jnp.count_nonzero(batch[INPUTS]["segment_ids"], axis=1)}

    key = jax.eval_shape(lambda: jax.random.key(0))
    rng = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(spec.mesh))
    return self._compile(("train", _signature(batch)), counted, (self.abstract_sharded, self._abstract(batch), rng), True)

  def _eval_step(self, key: str, batch: Batch):
    abstract = self.abstract_sharded
    params = tree.merge(abstract.params, abstract.frozen)
    step = make_eval_step(self.spec.objective.only(key))
    return self._compile((("eval", key), _signature(batch)), step, (params, self._abstract(batch)), False)

  def _compile(self, key: Any, function: Any, arguments: tuple, train: bool):
    if key not in self._compiled:
      everywhere = sharding.replicated(self.spec.mesh)
      out = (self._shardings, everywhere) if train else everywhere
      jitted = jax.jit(function, out_shardings=out, donate_argnums=(0,) if train else ())
      with sharding.use(self.spec.mesh):
        self._compiled[key] = jitted.lower(*arguments).compile()
    return self._compiled[key]

  def _abstract(self, batch: Batch) -> Batch:
    place = sharding.batch_sharding(self.spec.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), dict(batch))

  def _find_starts(self) -> dict[str, np.ndarray]:
    """The step from which parameters train, of those for which it is not the first for all layers."""
    num_layers = self.spec.model.cfg.num_layers
    found = {name: self.spec.peft.starts(name, num_layers) for name, trains in self.trainable.items() if trains}
    starts = {name: np.asarray(start, np.int32) for name, start in found.items()}
    if (first := min(start.min() for start in starts.values())) > 0:
      raise ValueError(f"config.peft={self.spec.peft}: no parameter trains before step {first:,}")
    for name, start in starts.items():
      assert start.shape in ((), (num_layers,) if self.axes[name][0] == "layers" else ()), (name, start.shape)
    return {name: start for name, start in starts.items() if start.any()}

  def _init_params(self, rng: jax.Array, base: dict[str, Any]) -> tuple[dict, dict]:
    """Boxed parameters by name before the PEFT method adds its own, and the tree with them, quantised."""
    boxed = tree.flatten(self.spec.model.init(rng))
    for name, value in base.items():
      boxed[name] = boxed[name].replace(value=jnp.asarray(value, boxed[name].value.dtype))
    peft, quantizer = self.spec.peft, self.spec.model.quantizer
    attach = lambda boxes: tree.flatten(peft.attach(tree.unflatten(boxes), jax.random.fold_in(rng, 1)))
    before, attached = quantizer.attach(boxed, attach, peft.trainable) if quantizer else (boxed, attach(boxed))
    return before, tree.unflatten(attached)

  def _init_state(self, rng: jax.Array, base: dict[str, Any]) -> TrainState:
    before, attached = self._init_params(rng, base)
    params, frozen = tree.split(nn.unbox(attached), self.trainable.__getitem__)
    if self.spec.objective.needs_reference:
      own = tree.flatten(attached)  # of which the method may have changed some: a PiSSA start takes its product off
      moved = {name: box for name, box in before.items() if name in own and own[name] is not box or self.trainable.get(name)}
      frozen = frozen | {REFERENCE: nn.unbox(tree.unflatten(moved))}
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      frozen=frozen,
      opt_state=self._moves.init(params),
      peft_state=self.spec.peft.init_state(params),
      loss_scale=init_loss_scale(self.spec.model.dtype),
      average=self._moves.average.init(params),
    )


@functools.lru_cache(maxsize=4)
def make_program(spec: Spec) -> Program:
  """The program of a spec; equal specs of one process share it, so that a sweep over seeds compiles once."""
  return Program(spec)


def _signature(batch: Batch) -> tuple:
  leaves = jax.tree_util.tree_leaves_with_path(dict(batch))
  return tuple((tree.leaf_name(path), tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves)
