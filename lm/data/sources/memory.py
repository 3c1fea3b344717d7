"""Examples given in the config: for tests and notebooks."""

import dataclasses
import hashlib

from lm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Memory:
  """The same texts, with labels or without, in every split."""

  split: str = "train"
  texts: tuple[str, ...] = ()  # one per example
  text_labels: tuple[str, ...] = ()  # one per text; the label set is their sorted set

  def __post_init__(self):
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
    return len(self.texts)

  def __getitem__(self, index: int) -> dict[str, str]:
    example = {"text": self.texts[index]}
    return example | ({"label": self.text_labels[index]} if self.text_labels else {})

  def fingerprint(self) -> str:
    """Hash of texts and labels."""
    return hashlib.sha256(repr((self.texts, self.text_labels)).encode()).hexdigest()
