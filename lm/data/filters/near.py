"""Documents that are nearly one that was kept: Jaccard similarity of their word n-grams, estimated by MinHash.

Of a group of copies the first in order stays. As only kept documents are compared with, no chain of small changes takes
out a document that is unlike all that stay. What the defaults find is measured in experiments/data_hygiene; Lee et al. 2021
(arXiv:2107.06499) have 5-grams at 0.8, which two changed words of a hundred escape.
"""

import dataclasses
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data import minhash, ngrams
from lm.data.filters.filter import EXAMPLES, Batch


@dataclasses.dataclass(frozen=True)
class Near:
  """Changing one word of W changes n n-grams: J = (W - 2n + 1) / (W + 1). Memory: about 2 kB per document that stays.

  A document without words stays, one of fewer than n words is one n-gram.
  """

  threshold: float = 0.6  # estimated similarity from which on a document is a near-duplicate
  ngram: int = 3  # [words] that are compared together
  num_permutations: int = 128  # of the signatures; more are more exact and slower
  seed: int = 0  # of the permutations

  def __post_init__(self):
    if not 0.1 <= self.threshold <= 1:
      raise ConfigError(f"filter 'near': threshold={self.threshold}: accepted are 0.1 to 1")
    if self.ngram < 1 or not 0 <= self.seed < 1 << 31:
      raise ConfigError(f"filter 'near': ngram={self.ngram}, seed={self.seed}: accepted are 1 and up, 0 to 2147483647")
    if not 64 <= self.num_permutations <= 4096:
      raise ConfigError(f"filter 'near': num_permutations={self.num_permutations}: accepted are 64 to 4096")

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """Notes: examples, [document, the kept one it is nearest to, their similarity]; the bands that candidates share one of."""
    index, numbers = minhash.Index(self.threshold, self.num_permutations), array("q")
    notes |= {"examples": [], "bands": self.num_permutations // index.rows, "rows_per_band": index.rows}
    for batch in batches:
      words = ngrams.split_words([document.text for document in batch])
      hashes, first_word = words.ngrams(self.ngram, short=True)
      text, first = np.unique(words.text_of(first_word), return_index=True)
      signatures = minhash.signatures(hashes, first, self.num_permutations, self.seed)
      near = [-1] * len(batch)
      for i, other, similarity in zip(text, *index.add(signatures), strict=True):
        near[i] = other
        if other < 0:
          numbers.append(batch[i].number)
        elif len(notes["examples"]) < EXAMPLES:
          notes["examples"].append([batch[i].number, numbers[other], round(float(similarity), 3)])
      yield [document for document, other in zip(batch, near, strict=True) if other < 0]
