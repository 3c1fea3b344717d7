"""Corruption over whole batches in numpy. Noise is a counter hash of (seed, epoch, sequence, position), not a generator.

So a position's noise does not depend on the row it stands in, on the batch, or on the host that reads it.
"""

import dataclasses
import functools

import numpy as np

from lm.data.tokenizer import Tokenizer

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LAST = np.uint64((1 << 64) - 1)  # sorts behind every key


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

  def bits(self, draw: int, where: np.ndarray | None = None) -> np.ndarray:
    """uint64 [R, T], or [n] at the n flat positions `where`; `draw` numbers independent draws for one position."""
    sequence, offset = self.sequence_RT, self.offset_RT
    with np.errstate(over="ignore"):
      key = splitmix(np.asarray([self.seed * 64 + draw], np.uint64) + _GOLDEN)
      per_row = splitmix(key + self.epoch_R.astype(np.uint64) * _GOLDEN)[:, None]
      if where is not None:
        per_row = per_row[where // sequence.shape[1], 0]
        sequence, offset = sequence.ravel()[where], offset.ravel()[where]
      per_sequence = splitmix(per_row + sequence.astype(np.uint64) * _GOLDEN)
      return splitmix(per_sequence + offset.astype(np.uint64) * _GOLDEN)

  def uniform(self, draw: int, where: np.ndarray | None = None) -> np.ndarray:
    """float64 in [0, 1), of the shape of `bits`."""
    return (self.bits(draw, where) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def num_chosen(counts: np.ndarray, rate: float) -> np.ndarray:
  """How many of `counts` positions are chosen: the nearest integer to rate * count, at least 1 (0 of none)."""
  return np.minimum(np.maximum(np.floor(rate * counts + 0.5), 1), counts).astype(np.int64)


def choose(eligible_RT: np.ndarray, segment_ids_RT: np.ndarray, rate: float, noise: Noise) -> np.ndarray:
  """Chooses exactly `num_chosen` of the eligible positions of every segment: those with the smallest noise.

  Eligible [0 1 1 1 0], one segment, rate 0.3 -> one of the three, e.g. [0 0 1 0 0].
  """
  R, T = eligible_RT.shape
  num_segments = int(segment_ids_RT.max(initial=0)) + 1
  # One integer per position, (segment, noise, column) from the high bits to the low: a row sorts by segment, then noise.
  # The bits kept of the noise follow from T alone, so that neither the row's place nor its neighbours change the order.
  bits = np.uint64(T.bit_length())
  keys_RT = noise.bits(0) >> (bits + bits) << bits | np.arange(T, dtype=np.uint64)
  keys_RT |= segment_ids_RT.astype(np.uint64) << (np.uint64(64) - bits)
  keys_RT[~eligible_RT] = _LAST
  keys_RT.sort(axis=1)
  filled_RT = keys_RT != _LAST
  row, keys = np.nonzero(filled_RT)[0], keys_RT[filled_RT]
  column = (keys & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
  segment = (keys >> (np.uint64(64) - bits)).astype(np.int64) + row * num_segments
  counts = np.bincount(segment, minlength=R * num_segments)
  # An entry is chosen if its rank in its segment, from 0, is below the segment's number of chosen positions.
  last = np.cumsum(counts) - counts + num_chosen(counts, rate)
  first_ranks = np.arange(len(keys)) < last[segment]
  chosen_RT = np.zeros((R, T), bool)
  chosen_RT[row[first_ranks], column[first_ranks]] = True
  return chosen_RT


def mask_tokens(
  tokens_RT: np.ndarray, chosen_RT: np.ndarray, noise: Noise, tok: Tokenizer, mask_share: float, random_share: float
) -> np.ndarray:
  """BERT's replacement of chosen positions: the mask token, a random token that is no special, or the token itself."""
  assert tok.mask_id is not None, "the run was built with a tokenizer that has a mask token"
  ordinary = _ordinary_ids(tok.vocab_size, tok.special_ids)
  where = np.flatnonzero(chosen_RT)
  kind = noise.uniform(1, where)
  swapped = where[(kind >= mask_share) & (kind < mask_share + random_share)]
  masked_RT = tokens_RT.copy()
  masked_RT.flat[where[kind < mask_share]] = tok.mask_id
  masked_RT.flat[swapped] = ordinary[(noise.bits(2, swapped) % np.uint64(len(ordinary))).astype(np.int64)]
  return masked_RT


@functools.lru_cache(maxsize=4)
def _ordinary_ids(vocab_size: int, special_ids: tuple[int, ...]) -> np.ndarray:
  return np.setdiff1d(np.arange(vocab_size), special_ids)


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
