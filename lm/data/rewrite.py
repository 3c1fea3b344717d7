"""Documents rewritten for a model that predicts the next token: parts move to the end and are predicted there.

The one transformer has no encoder beside a decoder. What T5 (Raffel et al. 2020) gives to its encoder stands in the row
first, as a prefix that is seen in both directions, and what its decoder predicts stands behind it in the same segment.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from lm.config import ConfigError
from lm.data.corrupt import Noise, ranges, smallest
from lm.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Segments:
  """The segments of rows [R, T] and their n tokens in reading order. A segment's number g counts over all rows."""

  ids_RT: np.ndarray  # the segment ids they have in their rows
  at_n: np.ndarray  # flat position of each token
  of_n: np.ndarray  # its segment
  place_n: np.ndarray  # its place there
  size_G: np.ndarray  # tokens
  head_G: np.ndarray  # flat position of the first token; its noise decides what is drawn once for the segment

  @property
  def shape(self) -> tuple[int, int]:
    """(R, T)"""
    R, T = self.ids_RT.shape
    return R, T

  @property
  def begin_G(self) -> np.ndarray:
    """Number of each segment's first token."""
    return np.cumsum(self.size_G) - self.size_G

  @classmethod
  def of(cls, segment_ids_RT: np.ndarray) -> "Segments":
    """[[1 1 2 0]] has sizes [2 1], places [0 1 0]."""
    at, T = np.flatnonzero(segment_ids_RT > 0), segment_ids_RT.shape[1]
    first = np.ones(len(at), bool)
    first[1:] = np.diff(segment_ids_RT.ravel()[at].astype(np.int64) + at // T * (T + 1)) != 0
    of = np.cumsum(first) - 1
    begins = np.flatnonzero(first)
    size = np.diff(begins, append=len(at))
    return cls(segment_ids_RT, at, of, np.arange(len(at)) - begins[of], size, at[begins])

  def spread(self, values_n: np.ndarray) -> np.ndarray:
    """A value per token in its place [R, T], 0 elsewhere."""
    flat = np.zeros(self.shape[0] * self.shape[1], values_n.dtype)
    flat[self.at_n] = values_n
    return flat.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Entries:
  """Tokens of rewritten segments in any order. of: segment. order: where each comes there. target: whether it is predicted."""

  of: np.ndarray
  order: np.ndarray
  token: np.ndarray
  target: np.ndarray

  def __add__(self, other: "Entries") -> "Entries":
    return Entries(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in dataclasses.fields(self)))


def lay_out(entries: Entries, last_G: np.ndarray, segments: Segments) -> dict[str, np.ndarray]:
  """Rows [R, T] of the entries: tokens, targets, weights, segment_ids and positions, and prefix, 1 before the first target.

  last_G: the token that ends each segment, a target always. Tokens [b x a] with targets [0 0 1] and last eos become
  tokens [b x a], targets [x a eos], weights [0 1 1], prefix [1 1 0].
  """
  R, T = segments.shape
  by = np.argsort(entries.of * (int(entries.order.max(initial=0)) + 1) + entries.order, kind="stable")
  of, token, target = entries.of[by], entries.token[by], entries.target[by]
  size_G = np.bincount(of, minlength=len(last_G))
  ends_G = np.cumsum(size_G)
  row_G = segments.head_G // T
  row_sizes = np.bincount(row_G, size_G, R).astype(np.int64)
  assert row_sizes.max(initial=0) <= T, f"row_cost is too low: {row_sizes.max()} tokens in a row of {T}"
  before_R = np.cumsum(row_sizes) - row_sizes
  at = np.arange(len(of)) + (row_G * T - before_R[row_G])[of]
  rank_G = np.arange(len(row_G)) - np.searchsorted(row_G, row_G) + 1
  following, counted = np.roll(token, -1), np.roll(target, -1)
  following[ends_G - 1], counted[ends_G - 1] = last_G, True

  def spread(values, dtype):
    flat = np.zeros(R * T, dtype)
    flat[at] = values
    return flat.reshape(R, T)

  before = np.cumsum(target) - np.concatenate([[0], np.cumsum(target)])[ends_G - size_G][of]
  return {
    "tokens": spread(token, "int32"),
    "targets": spread(following, "int32"),
    "weights": spread(counted, "float32"),
    "segment_ids": spread(rank_G[of], "int32"),
    "positions": spread(np.arange(len(of)) - (ends_G - size_G)[of], "int32"),
    "prefix": spread(before == 0, "int32"),
  }


def num_spans(length: np.ndarray, rate: np.ndarray | float, mean: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
  """(hidden tokens, spans that they stand in) of `length` tokens, as T5 has it; none of fewer than two tokens.

  rate: share of hidden tokens. mean: of a span's length. 20 tokens, rate 0.15, mean 3 -> (3, 1).
  """
  hidden = np.clip(np.floor(rate * length + 0.5), 1, np.maximum(length - 1, 0)).astype(np.int64)
  hidden = np.where(length < 2, 0, hidden)
  spans = np.maximum(np.floor(hidden / mean + 0.5), 1).astype(np.int64)
  return hidden, np.minimum(spans, np.minimum(hidden, length - hidden))


def hide_spans(
  segments: Segments, begin_G: np.ndarray, hidden_G: np.ndarray, spans_G: np.ndarray, noise: Noise
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """T5's random spans: in each segment, from place `begin` on, kept and hidden parts by turns, a kept one first.

  Both the hidden and the kept tokens are cut into `spans` parts, all ways to cut alike. Eight tokens of which 3 are hidden
  in 2 spans: e.g. kept 2, hidden 1, kept 3, hidden 2 -> [0 0 1 0 0 0 1 1].

  Returns:
    hidden_n bool, and of each span, in reading order, its segment and the place where it begins.
  """
  of, place = segments.of_n, segments.place_n - begin_G[segments.of_n]
  # The first `hidden` places stand for the hidden tokens and the others for the kept ones; `spans` - 1 of each begin a part.
  kept = place >= hidden_G[of]
  inner = (place > 0) & (place != hidden_G[of])
  cut, noise_RT = np.zeros(len(of), bool), noise.bits(4)
  for half in (kept, ~kept):
    cut |= _cuts(segments, inner & half, spans_G, noise_RT)
  before_G = np.cumsum(spans_G) - spans_G
  cuts = np.cumsum(cut)
  within = cuts - np.concatenate([[0], cuts])[segments.begin_G][of]
  part = before_G[of] + within - kept * np.maximum(spans_G - 1, 0)[of]
  counted = (place >= 0) & (spans_G > 0)[of]
  span_of = np.repeat(np.arange(len(spans_G)), spans_G)
  sizes = [np.bincount(part[counted & half], minlength=len(span_of)) for half in (~kept, kept)]
  ends = [np.cumsum(size) for size in sizes]
  since = [(end - np.concatenate([[0], end])[before_G[span_of]]) for end in ends]  # in the segment
  begin = begin_G[span_of] + since[1] + since[0] - sizes[0]
  hidden = np.zeros(len(of), bool)
  hidden[ranges(begin + segments.begin_G[span_of], sizes[0])] = True
  return hidden, span_of, begin


def _cuts(segments: Segments, where_n: np.ndarray, spans_G: np.ndarray, noise_RT: np.ndarray) -> np.ndarray:
  """Chooses `spans` - 1 of the tokens `where` of each segment, bool [n]."""
  (R, T), num_ids = segments.shape, int(segments.ids_RT.max(initial=0)) + 1
  wanted = np.zeros(R * num_ids, np.int64)
  wanted[segments.head_G // T * num_ids + segments.ids_RT.ravel()[segments.head_G]] = np.maximum(spans_G - 1, 0)
  found_RT = smallest(noise_RT, segments.spread(where_n), segments.ids_RT, lambda counts: np.minimum(wanted, counts))
  return found_RT.ravel()[segments.at_n]


def reserved(tok: Tokenizer, setting: str, given: tuple[int, ...], names: Iterable[Sequence[str]]) -> tuple[int, ...]:
  """Ids of the symbols that stand between parts: those given, else those of the vocabulary, each by the first name it has.

  names: of each symbol. The search ends at the first one that is missing.

  Raises:
    ConfigError: a given id is outside the vocabulary, a special of sequences, or there twice.
  """
  if given:
    taken = {tok.pad_id, tok.bos_id, tok.eos_id}
    if len(set(given)) < len(given) or any(not 0 <= i < tok.vocab_size or i in taken for i in given):
      raise ConfigError(
        f"{setting}={given}: accepted are different ids below {tok.vocab_size}, not those of {', '.join(map(tok.piece, taken))}"
      )
    return given
  found = []
  for choices in names:
    ids = [i for i in map(tok.find, choices) if i is not None]
    if not ids:
      break
    found.append(ids[0])
  return tuple(found)


def check_reserved(found: tuple[int, ...], needed: int, setting: str, example: str) -> None:
  """Raises ConfigError if the tokenizer has fewer symbols than a task writes."""
  if len(found) < needed:
    raise ConfigError(
      f"{setting}: {needed} symbols are needed, there are {len(found)}; accepted are a tokenizer that has {example}"
      " (python -m tools.train_tokenizer --extra_symbols=...) or ids of its vocabulary that no text needs"
    )
