"""Corruption over whole batches in numpy. Noise is a counter hash of (seed, epoch, sequence, position), not a generator.

So a position's noise does not depend on the row it stands in, on the batch, or on the host that reads it.
"""

import dataclasses

import numpy as np

from lm.data.tokenizer import Tokenizer

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix(x: np.ndarray) -> np.ndarray:
  """The finaliser of splitmix64 (Steele et al. 2014): uint64 to well-mixed uint64."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class Noise:
  """Random numbers for rows of tokens.

  epoch_R: passes over the data before each row's. sequence_RT, offset_RT: which token of which stored sequence stands at
  each position.
  """

  seed: int
  epoch_R: np.ndarray
  sequence_RT: np.ndarray
  offset_RT: np.ndarray

  def bits(self, draw: int) -> np.ndarray:
    """uint64 [R, T]; `draw` numbers independent draws for one position."""
    with np.errstate(over="ignore"):
      key = splitmix(np.asarray([self.seed * 64 + draw], np.uint64) + _GOLDEN)
      per_row = splitmix(key + self.epoch_R.astype(np.uint64) * _GOLDEN)
      per_sequence = splitmix(per_row[:, None] + self.sequence_RT.astype(np.uint64) * _GOLDEN)
      return splitmix(per_sequence + self.offset_RT.astype(np.uint64) * _GOLDEN)

  def uniform(self, draw: int) -> np.ndarray:
    """float64 [R, T] in [0, 1)."""
    return (self.bits(draw) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def num_chosen(counts: np.ndarray, rate: float) -> np.ndarray:
  """How many of `counts` positions are chosen: the nearest integer to rate * count, at least 1 (0 of none)."""
  return np.minimum(np.maximum(np.floor(rate * counts + 0.5), 1), counts).astype(np.int64)


def choose(eligible_RT: np.ndarray, segment_ids_RT: np.ndarray, rate: float, noise: Noise) -> np.ndarray:
  """Chooses exactly `num_chosen` of the eligible positions of every segment: those with the smallest noise.

  Eligible [0 1 1 1 0], one segment, rate 0.3 -> one of the three, e.g. [0 0 1 0 0].
  """
  R, T = eligible_RT.shape
  num_segments = int(segment_ids_RT.max(initial=0)) + 1
  segment_RT = segment_ids_RT.astype(np.int64) + np.arange(R)[:, None] * num_segments
  counts = np.bincount(segment_RT[eligible_RT], minlength=R * num_segments)
  where = np.flatnonzero(eligible_RT)
  segments = segment_RT.ravel()[where]
  # Segments are contiguous and rise along the row, so sorting by segment + noise orders the noise within each segment.
  order = np.argsort(segments + noise.uniform(0).ravel()[where], kind="stable")
  first = np.cumsum(counts) - counts
  rank = np.arange(len(order)) - first[segments[order]]
  chosen = np.zeros(R * T, bool)
  chosen[where[order[rank < num_chosen(counts, rate)[segments[order]]]]] = True
  return chosen.reshape(R, T)


def mask_tokens(
  tokens_RT: np.ndarray, chosen_RT: np.ndarray, noise: Noise, tok: Tokenizer, mask_share: float, random_share: float
) -> np.ndarray:
  """BERT's replacement of chosen positions: the mask token, a random token that is no special, or the token itself."""
  kind_RT = noise.uniform(1)
  ordinary = np.setdiff1d(np.arange(tok.vocab_size), tok.special_ids)
  random_RT = ordinary[(noise.bits(2) % np.uint64(len(ordinary))).astype(np.int64)]
  assert tok.mask_id is not None, "the run was built with a tokenizer that has a mask token"
  masked_RT = np.where(chosen_RT & (kind_RT < mask_share), tok.mask_id, tokens_RT)
  swapped = chosen_RT & (kind_RT >= mask_share) & (kind_RT < mask_share + random_share)
  return np.where(swapped, random_RT, masked_RT).astype(tokens_RT.dtype)


def gather(chosen_RT: np.ndarray, width: int, values_RT: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Chosen positions as dense arrays [R, P]: (positions int32, weights fp32, values there), zero beyond the last.

  Chosen [0 1 0 1], width 3, values [5 6 7 8] -> positions [1 3 0], weights [1 1 0], values [6 8 0].
  """
  rows, columns = np.nonzero(chosen_RT)
  counts = chosen_RT.sum(1)
  assert counts.max(initial=0) <= width, f"{counts.max()} chosen positions do not fit {width}"
  slots = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
  shape = (len(chosen_RT), width)
  positions, weights, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(shape, values_RT.dtype)
  positions[rows, slots], weights[rows, slots], values[rows, slots] = columns, 1, values_RT[rows, columns]
  return positions, weights, values
