"""Documents that share a word n-gram with an evaluation set, which would be measured as knowledge (GPT-3, arXiv:2005.14165).

Of an evaluation example every text counts by itself. One of fewer than n words cannot be found, and the report counts it.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lm import plug
from lm.config import ConfigError
from lm.data import ngrams
from lm.data.filters.filter import EXAMPLES, Batch
from lm.data.source import check_split

AT_ONCE = 1024  # evaluation texts that are read


@dataclasses.dataclass(frozen=True)
class Decontaminate:
  """Takes out every document with an n-gram of a set. Memory: 16 bytes a word of the sets, and their text while it is read."""

  against: tuple[str, ...] = ()  # evaluation sets, each as config.data names a source: 'text(test=a.txt)'
  split: str = "test"  # which of their splits
  ngram: int = 13  # [words] that must agree

  def __post_init__(self):
    if not self.against:
      raise ConfigError("filter 'decontaminate': against is not set; accepted are sources, as against='text(test=a.txt)'")
    check_split(self.split, "filter 'decontaminate': split")
    if self.ngram < 1:
      raise ConfigError(f"filter 'decontaminate': ngram={self.ngram}: accepted are 1 and numbers above")

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """Notes, of each set: its texts, those too short to be found, those found, documents hit, examples of what they share."""
    sets = [_read(spec, self.split, self.ngram) for spec in self.against]
    found = [np.zeros(each.num_texts, bool) for each in sets]
    reports: list[dict[str, Any]] = [
      {"data": spec, "texts": each.num_texts, "too_short": each.num_short, "found": 0, "documents": 0, "examples": []}
      for spec, each in zip(self.against, sets, strict=True)
    ]
    notes["against"] = reports
    for batch in batches:
      words = ngrams.split_words([document.text for document in batch])
      hashes, first_word = words.ngrams(self.ngram)
      is_hit = np.zeros(len(batch), bool)
      for each, seen, note in zip(sets, found, reports, strict=True):
        hits, texts = each.find(hashes)
        seen[texts] = True
        documents, which = np.unique(words.text_of(first_word[hits]), return_index=True)
        is_hit[documents] = True
        note["documents"] += len(documents)
        note["found"] = int(seen.sum())
        for i, hit in zip(documents[: EXAMPLES - len(note["examples"])], which, strict=False):
          shared = words.excerpt(first_word[hits[hit]], self.ngram)
          note["examples"].append({"document": batch[i].number, "shares": shared})
      yield [document for document, hit in zip(batch, is_hit, strict=True) if not hit]


@dataclasses.dataclass(frozen=True)
class _Set:
  """The n-grams of an evaluation set: their hashes, sorted, and the number of the text each is from."""

  hashes: np.ndarray
  texts: np.ndarray
  num_texts: int
  num_short: int

  def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(which of these hashes are in the set, which of its texts have one of them)."""
    first, last = (np.searchsorted(self.hashes, hashes, side) for side in ("left", "right"))
    hits = np.flatnonzero(last > first)
    texts = [self.texts[start:stop] for start, stop in zip(first[hits], last[hits], strict=True)]
    return hits, np.concatenate([np.zeros(0, np.int64), *texts])


def _read(spec: str, split: str, n: int) -> _Set:
  source = plug.make("data", plug.parse_plug("filter 'decontaminate': against", spec), split=split)
  texts = [value for i in range(len(source)) for value in source[i].values() if isinstance(value, str)]
  hashes, owners, num_short = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
  for start in range(0, len(texts), AT_ONCE):
    words = ngrams.split_words(texts[start : start + AT_ONCE])
    found, first_word = words.ngrams(n)
    hashes.append(found)
    owners.append(words.text_of(first_word) + start)
    num_short += int((words.counts < n).sum())
  every, owner = np.concatenate(hashes), np.concatenate(owners)
  if not len(every):
    raise ConfigError(f"filter 'decontaminate': against={spec!r}, split {split!r}: no text has {n} words")
  order = np.argsort(every, kind="stable")
  return _Set(every[order], owner[order], len(texts), num_short)
