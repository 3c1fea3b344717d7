"""What stands in for data and a tokenizer that are not there, where a step is compiled and only shapes are asked for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm import plug
from lm.config import Stream
from lm.data.answers import KINDS
from lm.data.store import Store
from lm.data.tokenizer import Bytes

LABELS = ("0", "1")
SEQUENCES = 2  # a task that pairs sequences needs two


class StandInTokenizer(Bytes):
  """A vocabulary of a size and nothing else: symbols that a task asks for by name get ids from its end."""

  def __init__(self, vocab_size: int):
    super().__init__()
    self.vocab_size = vocab_size
    self._symbols: dict[str, int] = {}

  def find(self, piece):
    if piece not in self._symbols and len(self._symbols) < self.vocab_size // 2:
      self._symbols[piece] = self.vocab_size - 1 - len(self._symbols)
    return self._symbols.get(piece)


@dataclasses.dataclass(frozen=True)
class StandInSource:
  """What a task is made from, without an example: the classes are two where the config does not list them."""

  pairs: bool
  num_hard_negatives: int = 0
  labels: tuple[str, ...] = LABELS
  numbers: tuple[float, ...] = (0.0, 1.0)
  tags: tuple[str, ...] = ("B-0", "I-0", "O")
  answers: tuple[str, ...] = KINDS
  choices: tuple[str, ...] = LABELS
  items: tuple[str, ...] = LABELS

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> dict[str, str]:
    return {"label": self.labels[index]}  # one of each: what counts labels finds them all

  @classmethod
  def of(cls, stream: Stream) -> "StandInSource":
    """Labels as the task lists them; pairs as the source always gives them, or else as its option `text` says."""
    text = dict(stream.data.options).get("text", ())
    count = len(text) if isinstance(text, tuple) else str(text).count(",") + 1
    always = getattr(plug.find("data", stream.data.name), "pairs", False) is True
    labels: Any = dict(stream.task.options).get("labels") or LABELS
    return cls(always or count > 1, max(count - 2, 0), labels)


def store(task: Any, seq_len: int) -> Store:
  """Sequences that fill rows of `seq_len`, of id 0."""
  shift = max(field.shift for field in task.fields.values())
  by_column: Mapping[str, tuple[str, ...]] = {field.column or name: field.dims for name, field in task.fields.items()}
  each = {column: seq_len + shift if dims == ("T",) else 1 for column, dims in by_column.items()}
  arrays = {c: (np.zeros(SEQUENCES * size, np.int32), size * np.arange(SEQUENCES + 1)) for c, size in each.items()}
  return Store(None, arrays)
