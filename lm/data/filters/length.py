"""Documents that are too short or too long, in words and characters."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from lm.config import ConfigError
from lm.data import ngrams
from lm.data.filters.filter import Batch


@dataclasses.dataclass(frozen=True)
class Length:
  """What is within all limits stays. A character of a script without blanks (Chinese, Thai) is a word."""

  min_words: int = 0  # [words]
  max_words: int = 0  # [words], 0 is no limit
  min_chars: int = 0  # [characters]
  max_chars: int = 0  # [characters], 0 is no limit

  def __post_init__(self):
    for unit, low, high in (("words", self.min_words, self.max_words), ("chars", self.min_chars, self.max_chars)):
      if min(low, high) < 0 or 0 < high < low:
        raise ConfigError(f"filter 'length': min_{unit}={low}, max_{unit}={high}: accepted are 0 and up, the lower one first")
    if not any(dataclasses.astuple(self)):
      raise ConfigError("filter 'length': no limit is set; there are: min_words, max_words, min_chars, max_chars")

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """Notes: how many were too short and too long."""
    notes |= {"too_short": 0, "too_long": 0}
    for batch in batches:
      kept = []
      for document, words in zip(batch, ngrams.split_words([each.text for each in batch]).counts, strict=True):
        chars = len(document.text)
        if words < self.min_words or chars < self.min_chars:
          notes["too_short"] += 1
        elif 0 < self.max_words < words or 0 < self.max_chars < chars:
          notes["too_long"] += 1
        else:
          kept.append(document)
      yield kept
