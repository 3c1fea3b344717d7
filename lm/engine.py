"""A model at work on what is in memory: tasks read examples, prompts go on. Predictors and evaluators have one."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lm import sharding
from lm.config import ConfigError
from lm.data import encode, store
from lm.data.loader import EMPTY, EvalLoader, StreamData, put
from lm.data.reserve import virtual_ids
from lm.data.tokenizer import Tokenizer
from lm.infer import generate
from lm.infer.generate import Sampler
from lm.models.model import Model
from lm.shapes import Batch
from lm.tasks.objective import Objective
from lm.tasks.task import Task

# Row lengths that are compiled: powers of two, one and a half times them, and beyond 128 what kernels of accelerators split.
LENGTHS = tuple(size for power in range(4, 21) for size in (1 << power, 3 << power - 1) if size <= 128 or size % 128 == 0)


class Result(NamedTuple):
  """arrays: per stored sequence, [N, ...] by name. owner_N: the example each comes from. num_cut: those longer than a row."""

  arrays: dict[str, np.ndarray]
  owner_N: np.ndarray
  num_cut: int


@dataclasses.dataclass(frozen=True)
class Engine:
  """A model, its method's leaves among `params`, on a mesh.

  Its experts take all tokens that come, whatever `expert_capacity` they were trained with: that is a share of a row's length,
  which here depends on the other texts of a batch.

  max_len: tokens of the longest row, specials included. tasks: those that it was trained on, by name.
  """

  model: Model
  params: dict[str, Any]
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  max_len: int
  tasks: Mapping[str, Task]

  def __post_init__(self):
    dropless = dataclasses.replace(self.model.cfg, expert_capacity=0.0)
    object.__setattr__(self, "model", dataclasses.replace(self.model, cfg=dropless))

  @property
  def prompt_is_prefix(self) -> bool:
    """Whether a prompt is seen in both directions, which all tasks of its head train: prefix_lm, span_corruption, ul2."""
    return all(task.prompt_is_prefix for task in self.tasks.values() if task.head == "lm")

  @property
  def longest(self) -> int:
    """Tokens of the longest text that a row takes behind what a method trained in front of it."""
    return self.max_len - self.model.num_virtual_tokens

  def read(self, task: Task, examples: Sequence[Mapping[str, Any]], batch_size: int) -> Result | None:
    """What the task's `predict` gives for every sequence of the examples, in their order; None without any.

    batch_size: rows that are computed at a time, rounded up to a multiple of the devices; of few examples, a power of two.
    """
    if batch_size < 1:
      raise ConfigError(f"batch_size={batch_size}: must be at least 1")
    if not examples:
      return None
    prepared = (task.prepare(example, self.tokenizer) for example in examples)
    kept = store.Store(None, encode.collect(sequence for sequences in prepared for sequence in sequences))
    num_virtual = self.model.num_virtual_tokens
    room_N = np.maximum(task.row_cost(kept.lengths), kept.lengths) + num_virtual * task.num_segments
    lengths = self._lengths(int(room_N.max()))
    shards = sharding.num_batch_shards(self.mesh)
    stream = StreamData("predict", "predict", task, kept, self.tokenizer, num_virtual=num_virtual)
    rows = -(-min(batch_size, 1 << (kept.num_sequences - 1).bit_length()) // shards) * shards
    loader = EvalLoader(stream, batch_size=rows, seq_len=lengths[-1], buckets=lengths)
    objective = Objective(self.model, (("predict", task),))
    arrays: dict[str, np.ndarray] = {}
    with sharding.use(self.mesh):
      for batch, sequence_B in loader:
        found = jax.device_get(_predict(objective, self.params, sharding.place(batch, self.mesh)))
        filled = sequence_B != EMPTY
        for name, values in found.items():
          put(arrays, name.split("/", 1)[1], sequence_B[filled], values[filled], kept.num_sequences)
    return Result(arrays, kept.owner_N, int(np.sum(room_N > self.max_len)))

  def write(self, prompts: Sequence[Sequence[int]], stop: int, sampler: Sampler, seed: int) -> list[list[int]]:
    """What the model writes behind each prompt, with what a method trained in front of all of them."""
    in_front = virtual_ids(self.model.num_virtual_tokens).tolist()
    with sharding.use(self.mesh):
      return generate.generate(self.model, self.params, [[*in_front, *prompt] for prompt in prompts], stop, sampler, seed)

  def _lengths(self, longest: int) -> tuple[int, ...]:
    """Row lengths up to one that takes `longest` tokens, or the longest there is: 30 -> (16, 24, 32)."""
    longest = min(longest, self.max_len)
    shorter = [size for size in LENGTHS if size < longest]
    return *shorter, min(LENGTHS[len(shorter)], self.max_len)


@functools.partial(jax.jit, static_argnums=0)
def _predict(objective: Objective, params: dict, batch: Batch) -> dict[str, jax.Array]:
  return objective.predict(params, batch)
