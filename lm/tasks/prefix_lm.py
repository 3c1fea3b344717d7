"""Prefix language modelling (Raffel et al. 2020): a document's first part is seen in both directions, the rest is predicted."""

import dataclasses

import numpy as np

from lm.data.rewrite import Segments
from lm.tasks.causal import Causal


@dataclasses.dataclass(frozen=True)
class PrefixLm(Causal):
  """Next-token prediction behind a prefix of random length, from one token to all but the last target.

  The document [bos a b c eos] with a prefix of two tokens becomes tokens [bos a b c], targets [a b c eos],
  weights [0 1 1 1] and prefix [1 1 0 0]. A piece of a split document has a prefix of its own.
  """

  prompt_is_prefix = True

  def corrupt(self, rows, noise, tok, width):
    segments = Segments.of(rows["segment_ids"])
    length_G = 1 + np.floor(noise.uniform(6, segments.head_G) * segments.size_G).astype(np.int64)
    length_n = length_G[segments.of_n]
    return {
      "tokens": rows["tokens"],
      "targets": rows["targets"],
      "weights": segments.spread((segments.place_n >= length_n - 1).astype(np.float32)),
      "prefix": segments.spread((segments.place_n < length_n).astype(np.int32)),
    }
