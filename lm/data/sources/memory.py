"""Examples given in the config: for tests and notebooks."""

import dataclasses
import hashlib
import json
from typing import Any

from lm.config import ConfigError
from lm.data.rows import parse_json


@dataclasses.dataclass(frozen=True)
class Memory:
  """The same texts, with labels or without, or the same rows of any columns, in every split."""

  split: str = "train"
  texts: tuple[str, ...] = ()  # one per example
  text_labels: tuple[str, ...] = ()  # one per text; the label set is their sorted set
  rows: tuple[str, ...] = ()  # instead of texts: JSON objects, one per example, such as '{"prompt": "Hi", "response": "Yo"}'

  def __post_init__(self):
    if self.rows and self.texts:
      raise ConfigError("data.rows: no effect beside data.texts; give one of them")
    for i, row in enumerate(self.rows):
      if isinstance(found := parse_json(row), str):
        raise ConfigError(f"data.rows[{i}]={row!r}: {found}")
    if self.text_labels and len(self.text_labels) != len(self.texts):
      raise ConfigError(f"data.text_labels: {len(self.text_labels)} labels for {len(self.texts)} texts")

  @property
  def labels(self) -> tuple[str, ...]:
    """The label set."""
    return tuple(sorted(set(self.text_labels)))

  @property
  def numbers(self) -> tuple[float, ...]:
    """The labels as numbers, each once; () if one is none."""
    try:
      return tuple(sorted({float(label) for label in self.text_labels}))
    except ValueError:
      return ()

  def __len__(self) -> int:
    return len(self.rows or self.texts)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if self.rows:
      return json.loads(self.rows[index])
    example = {"text": self.texts[index]}
    return example | ({"label": self.text_labels[index]} if self.text_labels else {})

  def fingerprint(self) -> str:
    """Hash of texts and labels, or of rows."""
    what = self.rows or (self.texts, self.text_labels)
    return hashlib.sha256(repr(what).encode()).hexdigest()
