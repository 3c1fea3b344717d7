"""Documents in other writing systems than those asked for, by the share of their letters."""

import dataclasses
import functools
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data.filters.filter import Batch
from lm.data.ngrams import code_points

NAMES = {"HAN": "CJK"}  # scripts whose letters' names begin with another word


@dataclasses.dataclass(frozen=True)
class Script:
  """A letter's script is the first word of its Unicode name: LATIN SMALL LETTER A. A document without letters has share 0."""

  scripts: tuple[str, ...] = ()  # e.g. Latin; or Han,Hiragana,Katakana; Cyrillic, Arabic, Devanagari, Hangul, Thai, ...
  min_share: float = 0.5  # of the letters of a document that must be in one of the scripts

  def __post_init__(self):
    if not 0 < self.min_share <= 1:
      raise ConfigError(f"filter 'script': min_share={self.min_share}: accepted are numbers above 0, up to 1")
    if not self.scripts:
      raise ConfigError("filter 'script': scripts is not set; accepted are names such as Latin, Han, Cyrillic, Arabic")
    unknown = [name for name in self.scripts if not _is_of(name).any()]
    if unknown:
      raise ConfigError(
        f"filter 'script': scripts={unknown[0]!r}: no letter's Unicode name begins so, as with Latin, Han, Thai"
      )

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """Notes: letters of all documents, and how many of them are in the scripts."""
    is_ours, is_letter = np.any([_is_of(name) for name in self.scripts], 0), _is_of("")
    notes |= {"letters": 0, "in_scripts": 0}
    for batch in batches:
      kept = []
      for document in batch:
        codes = code_points(document.text)
        letters, ours = int(is_letter[codes].sum()), int(is_ours[codes].sum())
        notes["letters"] += letters
        notes["in_scripts"] += ours
        if letters and ours >= self.min_share * letters:
          kept.append(document)
      yield kept


@functools.cache
def _is_of(script: str) -> np.ndarray:
  """By code point: whether it is a letter of a script; of "", whether it is a letter."""
  start = NAMES.get(script.upper(), script.upper())
  starts = tuple(f"{width}{start} " for width in ("", "FULLWIDTH ", "HALFWIDTH ")) if script else ("",)
  letters = (code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "L")
  is_of = np.zeros(sys.maxunicode + 1, bool)
  is_of[[code for code in letters if unicodedata.name(chr(code), "").startswith(starts)]] = True
  return is_of
