"""Span corruption (T5, Raffel et al. 2020) in one row: the text with spans left out, then the spans, which are predicted."""

import dataclasses

import numpy as np

from lm.data import rewrite
from lm.data.rewrite import Entries, Segments
from lm.tasks.causal import Causal

MAX_SENTINELS = 1 << 12


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """Hides `rate` of the tokens in spans of `mean` tokens. mode: which of the mode symbols says so, -1 none."""

  rate: float
  mean: float
  mode: int = -1


@dataclasses.dataclass(frozen=True)
class SpanCorruption(Causal):
  """Leaves spans out of each document, a sentinel in the place of each, and predicts them behind it.

  The one transformer has no encoder: the document [bos a b c d e f eos] of which [c] and [f] are hidden becomes one
  segment [bos a b <0> d e <1>, <0> c <1> f eos], its first part a prefix that is seen in both directions. Tokens are all
  but the last, targets all but the first, and weights are 1 where the target stands behind the comma. Pieces of a split
  document end with eos too, as T5's do.
  """

  span_rate: float = 0.15  # share of tokens that is left out
  span_mean: float = 3.0  # [tokens] mean length of what is left out at one place
  sentinel_ids: tuple[int, ...] = ()  # ids that mark the places, in order; unset takes <extra_id_0>, ... of the vocabulary

  prompt_is_prefix = True

  def __post_init__(self):
    if not 0 < self.span_rate < 1:
      raise ValueError(f"task.span_rate={self.span_rate}: must be between 0 and 1")
    if self.span_mean < 1:
      raise ValueError(f"task.span_mean={self.span_mean}: must be 1 or more")

  @property
  def denoisers(self) -> tuple[Denoiser, ...]:
    """What a document is denoised by; one of them is drawn for each."""
    return (Denoiser(self.span_rate, self.span_mean),)

  def row_cost(self, lengths_N):
    costs = [2 * rewrite.num_spans(lengths_N, d.rate, d.mean)[1] + (d.mode >= 0) for d in self.denoisers]
    return lengths_N + np.max(costs, axis=0)

  def check(self, tok, seq_len):
    lengths = np.arange(seq_len + 1)
    longest = lengths[self.row_cost(lengths) <= seq_len]
    needed = max(int(rewrite.num_spans(longest, d.rate, d.mean)[1].max(initial=0)) for d in self.denoisers)
    rewrite.check_reserved(self._sentinels(tok), needed, "task.sentinel_ids", "<extra_id_0>, <extra_id_1>, ...")

  def corrupt(self, rows, noise, tok, width):
    segments = Segments.of(rows["segment_ids"])
    token_n, of, place = rows["tokens"].ravel()[segments.at_n], segments.of_n, segments.place_n
    drawn_G = (noise.uniform(5, segments.head_G) * len(self.denoisers)).astype(np.int64)
    rate_G, mean_G, mode_G = (np.asarray([getattr(d, f) for d in self.denoisers])[drawn_G] for f in ("rate", "mean", "mode"))
    begin_G = (rows["tokens"].ravel()[segments.head_G] == tok.bos_id).astype(np.int64)  # bos stays where it is
    hidden_n, span_of, span_place = rewrite.hide_spans(
      segments, begin_G, *rewrite.num_spans(segments.size_G - begin_G, rate_G, mean_G), noise
    )
    behind = 2 * segments.shape[1] + 2  # added to the order of what is predicted
    number = np.arange(len(span_of)) - np.searchsorted(span_of, span_of)
    sentinel = np.asarray(self._sentinels(tok), np.int64)[number] if len(number) else number
    entries = Entries(of, 2 * place + 1 + behind * hidden_n, token_n, hidden_n)
    for moved in (False, True):
      entries += Entries(span_of, 2 * span_place + behind * moved, sentinel, np.full(len(span_of), moved))
    moded = np.flatnonzero(mode_G >= 0)
    if len(moded):
      mode = np.asarray(self._modes(tok))[mode_G[moded]]
      entries = Entries(moded, 2 * begin_G[moded], mode, np.zeros(len(moded), bool)) + entries
    return rewrite.lay_out(entries, np.full(len(begin_G), tok.eos_id), segments)

  def _sentinels(self, tok) -> tuple[int, ...]:
    names = ([f"<extra_id_{n}>"] for n in range(MAX_SENTINELS))
    return rewrite.reserved(tok, "task.sentinel_ids", self.sentinel_ids, names)

  def _modes(self, tok) -> tuple[int, ...]:
    del tok
    return ()
