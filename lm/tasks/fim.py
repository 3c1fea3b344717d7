"""Fill in the middle (Bavarian et al. 2022): next-token prediction of documents whose middle part was moved to the end."""

import dataclasses

import numpy as np

from lm.data import rewrite
from lm.data.rewrite import Entries, Segments
from lm.tasks.causal import Causal

# Prefix, suffix and middle: StarCoder's names, Qwen's, Code Llama's.
NAMES = tuple((f"<fim_{part}>", f"<|fim_{part}|>", f"\u2581<{part[:3].upper()}>") for part in ("prefix", "suffix", "middle"))
PSM, SPM, PLAIN = range(3)
# What comes when, of each format: prefix, middle and suffix of the text, then the three symbols (-1: not written).
ORDER = np.asarray([[1, 5, 3, 0, 2, 4], [4, 5, 2, 0, 1, 3], [0, 0, 0, -1, -1, -1]])


@dataclasses.dataclass(frozen=True)
class Fim(Causal):
  """Cuts some documents at two random tokens and moves what is between them to the end.

  [bos a b c d eos] cut before b and before d becomes [bos <pre> a <suf> d <mid> b c eos] (PSM) or
  [bos <pre> <suf> d <mid> a b c eos] (SPM, the paper's form for training beside PSM); all of it is predicted. A moved piece
  of a split document ends with eos too.
  """

  fim_rate: float = 0.5  # share of documents whose middle moves
  spm_rate: float = 0.5  # of them, how many are in the order suffix, prefix, middle
  symbol_ids: tuple[int, ...] = ()  # ids of the three symbols; unset takes <fim_prefix>, <fim_suffix>, <fim_middle> or alike

  def __post_init__(self):
    for name in ("fim_rate", "spm_rate"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"task.{name}={getattr(self, name)}: must be from 0 to 1")

  def row_cost(self, lengths_N):
    return lengths_N + 3

  def check(self, tok, seq_len):
    rewrite.check_reserved(self._symbols(tok), len(NAMES), "task.symbol_ids", "<fim_prefix>, <fim_suffix> and <fim_middle>")

  def corrupt(self, rows, noise, tok, width):
    segments = Segments.of(rows["segment_ids"])
    tokens_N, head_G, T = rows["tokens"].ravel(), segments.head_G, segments.shape[1]
    kind = noise.uniform(5, head_G)
    format_G = np.where(kind < self.fim_rate * self.spm_rate, SPM, np.where(kind < self.fim_rate, PSM, PLAIN))
    begin_G = (tokens_N[head_G] == tok.bos_id).astype(np.int64)
    cuts = [noise.uniform(draw, head_G) * (segments.size_G - begin_G + 1) for draw in (6, 7)]
    low_G, high_G = (begin_G + np.floor(f(*cuts)).astype(np.int64) for f in (np.minimum, np.maximum))

    of, place = segments.of_n, segments.place_n
    part = (place >= low_G[of]).astype(np.int64) + (place >= high_G[of])
    step = 2 * T  # between the parts of the order; bos is before all
    order = np.where(place < begin_G[of], 0, 1 + step * ORDER[format_G[of], part] + place)
    entries = Entries(of, order, tokens_N[segments.at_n], np.ones(len(of), bool))
    moved = np.flatnonzero(format_G != PLAIN)
    for i, symbol in enumerate(self._symbols(tok)):
      when = 1 + step * ORDER[format_G[moved], 3 + i]
      entries += Entries(moved, when, np.full(len(moved), symbol), np.ones(len(moved), bool))
    last_G = np.where(format_G == PLAIN, rows["targets"].ravel()[head_G + segments.size_G - 1], tok.eos_id)
    found = rewrite.lay_out(entries, last_G, segments)
    del found["prefix"]  # the model reads from left to right
    return found

  def _symbols(self, tok) -> tuple[int, ...]:
    return rewrite.reserved(tok, "task.symbol_ids", self.symbol_ids, NAMES)
