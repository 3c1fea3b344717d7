"""The contract of a task. The loop, the data wing and the evaluators know tasks only through it.

On the host (numpy): `prepare`, `fields`, `check`, `fitted`, `row_cost`, `target_counts`, `corrupt`, `join`,
`describe_predictions`. On the device (pure): `denominators`, `loss`, `predict`. There a task reads its batch as one flat dict:
the model's inputs and its own arrays.
Workers that tokenise import tasks, which therefore import no jax: what a loss needs beyond methods of arrays is in `Forward`.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lm.data.corrupt import Noise
from lm.data.tokenizer import Tokenizer
from lm.models.head_spec import HeadSpec
from lm.shapes import Field

if TYPE_CHECKING:
  import jax

  from lm.tasks.forward import Forward

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """Base of all tasks; frozen, so that a task is a value and equal tasks share compiled steps."""

  # Whether several sequences may share a row, apart by segment ids. Otherwise one sequence is padded to the row.
  packed: ClassVar[bool] = True
  # Whether a packed sequence that is longer than a row goes on in another one. Otherwise it is cut, and that is counted.
  splits: ClassVar[bool] = True
  # What the backbone must be: True autoregressive, False bidirectional, None either.
  causal: ClassVar[bool | None] = None
  # Whether a prompt, what the model goes on from, is seen in both directions.
  prompt_is_prefix: ClassVar[bool] = False
  # Whether the tokenizer must have a mask token.
  needs_mask: ClassVar[bool] = False
  # Whether the loss compares rows with each other, so that it is no sum over them, and the batch cannot come in parts.
  needs_whole_batch: ClassVar[bool] = False
  # Names of the settings that `prepare` reads: they decide whether a stored corpus can be used again.
  prepare_fields: ClassVar[tuple[str, ...]] = ()
  # What a source calls the set of what is learned, of which its training split must have some: labels, numbers or tags.
  # A field of that name takes it where the config leaves it empty. "" learns from texts alone.
  targets: ClassVar[str] = ""
  # Whether it predicts from texts alone; otherwise from rows with the columns that `prepare` reads.
  reads_texts: ClassVar[bool] = True
  # Weight of each loss sum in the total; sums without one are metrics only.
  coefficients: ClassVar[Mapping[str, float]] = {"loss": 1.0}
  # Evaluators of a run that names none, as (name, split).
  evaluators: ClassVar[tuple[tuple[str, str], ...]] = (("likelihood", "validation"),)

  @property
  def head(self) -> str:
    """Name of the head's parameters: `head_<head>`."""
    raise NotImplementedError

  @property
  def head_spec(self) -> HeadSpec:
    """The head this task reads."""
    raise NotImplementedError

  @property
  def heads(self) -> tuple[tuple[str, HeadSpec], ...]:
    """All heads by name, of a task that reads others beside its own (`forward.for_head`)."""
    return ((self.head, self.head_spec),)

  @property
  def num_segments(self) -> int:
    """Segments of a row that a sequence becomes, apart by segment ids."""
    return 1

  @property
  def needs_reference(self) -> bool:
    """Whether the loss asks what the model said before the run tuned it: `forward(batch, tuned=False)`."""
    return False

  @property
  def fields(self) -> dict[str, Field]:
    """The arrays of a row before corruption. `tokens` is always there."""
    raise NotImplementedError

  def prepare(self, example: Mapping[str, Any], tok: Tokenizer) -> list[dict[str, np.ndarray]]:
    """One example to any number of sequences of named columns. No randomness: the result is stored once.

    A task that describes its predictions gives one for every example, also for one without a label; or several that have a
    column `store.WINDOW` beside, [0], [1], ..., and that `join` puts together again.
    """
    raise NotImplementedError

  def fitted(self, room: int) -> "Task":
    """The task for rows that hold `room` tokens of a sequence, where it asks how many; ConfigError if they are too few."""
    del room
    return self

  def read_with(self, tok: Tokenizer, causal: bool) -> "Task":
    """The task with what it takes of the tokenizer, on a backbone that is autoregressive or not; called once, then `check`.

    Raises ConfigError if they do not suit it.
    """
    del tok, causal
    return self

  def check(self, tok: Tokenizer, seq_len: int) -> None:
    """Raises ConfigError if the tokenizer lacks what the task writes into rows of `seq_len` tokens."""

  def row_cost(self, lengths_N: np.ndarray) -> np.ndarray:
    """Upper bound of each sequence's length after corruption; the packing plan uses it."""
    return lengths_N

  def target_counts(self, lengths_N: np.ndarray) -> np.ndarray | None:
    """Upper bound of predicted positions in a piece of each length, or None if every position may be one."""
    del lengths_N
    return None

  def corrupt(self, rows: Arrays, noise: Noise, tok: Tokenizer, width: int) -> dict[str, np.ndarray]:
    """Rows [R, T] to the task's arrays, with a new `tokens` where the model should read another. Vectorised, numpy.

    Arrays with a value per position are [R, T]; those that hold columns of the row have names that end in "_positions".

    width: the number of predicted positions P that fits every row of the plan (T where `target_counts` gives None).
    """
    raise NotImplementedError

  def show_target(self, row: Arrays) -> str:
    """What one corrupted row is to be answered with, for people; "" where its text says it."""
    del row
    return ""

  def denominators(self, batch: Arrays) -> "dict[str, jax.Array]":
    """What each sum of `loss` is divided by, from the whole global batch."""
    raise NotImplementedError

  def loss(self, forward: "Forward", batch: Arrays, rng: "jax.Array | None") -> "dict[str, jax.Array]":
    """Named fp32 sums over the rows given; additive over rows, but for a task that `needs_whole_batch`."""
    raise NotImplementedError

  @property
  def reader(self) -> "Task":
    """The task that predicts from a text: another one where training has other rows than that."""
    return self

  def predict(self, forward: "Forward", batch: Arrays) -> "dict[str, jax.Array]":
    """Per-row arrays that evaluators and predictions read."""
    del forward, batch
    return {}

  def join(self, arrays: Mapping[str, np.ndarray], owner_N: np.ndarray) -> Mapping[str, np.ndarray]:
    """What `predict` gave for N sequences (host arrays [N, ...] by its names), as arrays [R, ...] of R examples.

    owner_N: the example that each sequence is of, ascending from 0. Rows that are longer than others have zeros behind.
    """
    assert len(np.unique(owner_N)) == len(owner_N), "a task that gives several sequences of an example joins them"
    return arrays

  def describe_predictions(self, arrays: Mapping[str, np.ndarray], tok: Tokenizer) -> list[dict[str, Any]]:
    """What `join` gave for R examples, as R dicts of plain Python for people and JSON."""
    raise NotImplementedError

  def quote(self, described: dict[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
    """What `describe_predictions` gave for an example, with the parts of its text that it points at."""
    del example
    return described

  @property
  def predicts(self) -> bool:
    """Whether it says something about each row that a user can read."""
    return type(self).describe_predictions is not Task.describe_predictions
