"""Corruption over whole batches in numpy. Noise is a counter hash of (seed, epoch, sequence, position), not a generator.

So a position's noise does not depend on the row it stands in, on the batch, or on the host that reads it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

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
      key = splitmix(np.asarray([(self.seed * 64 + draw) % 2**64], np.uint64) + _GOLDEN)
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
  return smallest(noise.bits(0), eligible_RT, segment_ids_RT, lambda counts: num_chosen(counts, rate))


def smallest(
  noise_RT: np.ndarray, where_RT: np.ndarray, segment_ids_RT: np.ndarray, wanted: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """Of the positions `where` of every segment, those with the smallest noise, bool [R, T].

  wanted: from how many there are of each (row, segment id), flat [R * S], to how many are taken.
  """
  R, T = where_RT.shape
  num_segments = int(segment_ids_RT.max(initial=0)) + 1
  row, column = in_order(noise_RT, where_RT, segment_ids_RT)
  segment = segment_ids_RT[row, column] + row * num_segments
  counts = np.bincount(segment, minlength=R * num_segments)
  # An entry is chosen if its rank in its segment, from 0, is below the segment's number of chosen positions.
  last = np.cumsum(counts) - counts + wanted(counts)
  first_ranks = np.arange(len(row)) < last[segment]
  chosen_RT = np.zeros((R, T), bool)
  chosen_RT[row[first_ranks], column[first_ranks]] = True
  return chosen_RT


def in_order(noise_RT: np.ndarray, where_RT: np.ndarray, group_RT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(row, column) of the positions `where`, sorted by row, then group (0 to T), then noise (uint64), then column."""
  T = where_RT.shape[1]
  # One integer per position, (group, noise, column) from the high bits to the low: a row sorts by group, then noise.
  # The bits kept of the noise follow from T alone, so that neither the row's place nor its neighbours change the order.
  bits = np.uint64(T.bit_length())
  keys_RT = noise_RT >> (bits + bits) << bits | np.arange(T, dtype=np.uint64)
  keys_RT |= group_RT.astype(np.uint64) << (np.uint64(64) - bits)
  keys_RT[~where_RT] = _LAST
  keys_RT.sort(axis=1)
  filled_RT = keys_RT != _LAST
  return np.nonzero(filled_RT)[0], (keys_RT[filled_RT] & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


def span_lengths(weights: Sequence[float]) -> np.ndarray:
  """Distribution function of a length from the weights of lengths 1, 2, ...: (1, 0.5, 0.5) -> [0.5 0.75 1]."""
  return np.cumsum(weights) / np.sum(weights)


# Lengths in words. SpanBERT (Joshi et al. 2020): geometric with p = 0.2, at most 10, mean 3.8. ALBERT (Lan et al. 2020):
# n-grams of 1 to 3 words with probability proportional to 1 / n.
SPANS, NGRAMS = span_lengths([0.8**n for n in range(10)]), span_lengths([1 / n for n in (1, 2, 3)])
WORDS = span_lengths([1])


def choose_words(
  eligible_RT: np.ndarray, starts_RT: np.ndarray, segment_ids_RT: np.ndarray, rate: float, noise: Noise, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Chooses whole words, in spans: of every segment as many tokens as `num_chosen` says, or as close below it as words fit.

  Every word begins a span of some words of its segment, its length drawn from `lengths` (SPANS, NGRAMS or WORDS, which are
  single). The spans are taken in the order of their noise, and of each its words from the left; a word that is larger than
  what is left is passed over, as in BERT's whole-word masking. So the number of predicted positions keeps its bound.

  Words [the play ##ing cat] with eligible [1 1 1 1] and starts [1 1 0 1], rate 0.5: two tokens, [0 1 1 0] or [1 0 0 1].

  Returns:
    chosen_RT, and origin_RT: flat position of the first token of the span that brought the position in.
  """
  R, T = eligible_RT.shape
  num_segments = int(segment_ids_RT.max(initial=0)) + 1
  at = np.flatnonzero(eligible_RT)
  segment = (segment_ids_RT + np.arange(R)[:, None] * num_segments).ravel()[at]
  apart = np.ones(len(at), bool)  # from the eligible token before: between them stands something, or a border
  apart[1:] = (np.diff(at) != 1) | (np.diff(segment) != 0)
  first = apart | starts_RT.ravel()[at]
  heads, word = at[first], np.cumsum(first) - 1
  sizes = np.bincount(word, minlength=len(heads))
  key, origin = _spans(noise.bits(0, heads), np.cumsum(apart)[first], noise.uniform(3, heads), lengths)

  order_N, where_N, word_N = (np.zeros(R * T, kind) for kind in (np.uint64, bool, np.int64))
  order_N[heads], where_N[heads], word_N[heads] = key, True, np.arange(len(heads))
  row, column = in_order(order_N.reshape(R, T), where_N.reshape(R, T), segment_ids_RT)
  words = word_N[row * T + column]
  counts = np.bincount(segment, minlength=R * num_segments)
  taken = np.zeros(len(heads), bool)
  taken[words] = _fill(sizes[words], segment[first][words], num_chosen(counts, rate))
  chosen = np.flatnonzero(taken[word])
  where_N[:], word_N[:] = False, 0
  where_N[at[chosen]], word_N[at[chosen]] = True, heads[origin[word[chosen]]]
  return where_N.reshape(R, T), word_N.reshape(R, T)


def _spans(key_W: np.ndarray, run_W: np.ndarray, uniform_W: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each word the smallest key of the spans that cover it, and the word that begins that span; spans stay in their run."""
  reach_W = np.searchsorted(lengths, uniform_W, side="right") if len(lengths) > 1 else np.zeros(len(key_W), np.int64)
  smallest_W, origin_W = key_W.copy(), np.arange(len(key_W))
  for j in range(1, min(len(lengths), len(key_W))):
    covers = np.flatnonzero((reach_W[:-j] >= j) & (key_W[:-j] < smallest_W[j:]))
    covers = covers[run_W[covers] == run_W[covers + j]]
    smallest_W[covers + j], origin_W[covers + j] = key_W[covers], covers
  return smallest_W, origin_W


def _fill(sizes: np.ndarray, group: np.ndarray, room_G: np.ndarray) -> np.ndarray:
  """Which entries are taken, first to last (groups stand together): each that its group still has room for.

  Sizes [3 2 2 1] of one group with room 4 -> [1 0 0 1].
  """
  taken, room_G = np.zeros(len(sizes), bool), room_G.copy()
  left = np.flatnonzero(sizes <= room_G[group])
  while len(left):  # a round takes what fits in front of the first that does not; then there is less room than that one's size
    now = group[left]
    begins = np.flatnonzero(np.diff(now, prepend=-1))
    among = np.minimum(np.diff(begins, append=len(left)), room_G[now[begins]])  # no more entries than room can fit
    entry, row = ranges(begins, among), np.repeat(np.arange(len(begins)), among)
    size = sizes[left[entry]]
    total = np.cumsum(size)
    before = np.concatenate([[0], total])[np.cumsum(among) - among]
    fits = total - before[row] <= room_G[now[entry]]
    taken[left[entry[fits]]] = True
    room_G -= np.bincount(now[entry[fits]], size[fits], len(room_G)).astype(np.int64)
    left = left[(sizes[left] <= room_G[now]) & ~taken[left]]
  return taken


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
  """start, start + 1, ... of each, one after the other: starts [5 0], counts [2 3] -> [5 6 0 1 2]."""
  first = np.cumsum(count) - count
  return np.repeat(start - first, count) + np.arange(count.sum())


def mask_tokens(
  tokens_RT: np.ndarray,
  chosen_RT: np.ndarray,
  noise: Noise,
  tok: Tokenizer,
  shares: tuple[float, float],
  origin_RT: np.ndarray | None = None,
) -> np.ndarray:
  """BERT's replacement of chosen positions: the mask token, a random token that is no special, or the token itself.

  shares: of the first two kinds. origin_RT: flat position whose noise decides the kind; a position's own if not given.
  """
  assert tok.mask_id is not None, "the run was built with a tokenizer that has a mask token"
  mask_share, random_share = shares
  ordinary = _ordinary_ids(tok.vocab_size, tok.special_ids)
  where = np.flatnonzero(chosen_RT)
  kind = noise.uniform(1, where if origin_RT is None else origin_RT.ravel()[where])
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
