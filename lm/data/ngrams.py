"""Texts as arrays of words and of n-grams' hashes: what near-duplicates and overlap with evaluation sets are found by.

A word is letters, marks and digits without a break, compared without case and width (NFKC). Characters of scripts that
put no blanks between words (Chinese, Japanese, Thai, ...) are words by themselves, so that an n-gram is n of them there.
"""

import dataclasses
import functools
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np

from lm.data.corrupt import splitmix

# First and last character of scripts without blanks: Thai, Lao; Tibetan; Myanmar; Khmer; kana; Han.
UNSPACED = ((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
UNSPACED += ((0xF900, 0xFAFF), (0x20000, 0x323AF))
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))


@dataclasses.dataclass(frozen=True)
class Words:
  """The W words of N texts, those of one text after those of the other.

  joined: the texts with a line break between them. hash_W: uint64. start_W, stop_W: their place in `joined`. first: [N + 1],
  text i has words first[i] to first[i + 1].
  """

  joined: str
  hash_W: np.ndarray
  start_W: np.ndarray
  stop_W: np.ndarray
  first: np.ndarray

  @property
  def counts(self) -> np.ndarray:
    """Words of each text, [N]."""
    return np.diff(self.first)

  def ngrams(self, n: int, short: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(hash, number of the first word) of every n-gram, uint64 and int64; none crosses from one text to the next.

    short: a text of fewer words is one n-gram. n=2: "a b c" has "a b", "b c".
    """
    start = np.arange(len(self.hash_W))
    stop = np.minimum(start + n, np.repeat(self.first[1:], self.counts))
    is_whole = stop - start == n
    if short:
      is_whole[self.first[:-1][(self.counts > 0) & (self.counts < n)]] = True
    start, stop = start[is_whole], stop[is_whole]
    return hash_spans(self.hash_W, start, stop), start

  def text_of(self, words: np.ndarray) -> np.ndarray:
    """The number of the text that each of these words is in."""
    return np.searchsorted(self.first, words, "right") - 1

  def excerpt(self, first: int, count: int) -> str:
    """The words from one on, as they stand in their text."""
    return self.joined[self.start_W[first] : self.stop_W[first + count - 1]]


def split_words(texts: Sequence[str]) -> Words:
  """The words of texts: "Ab-c 12" has ab, c, 12; "你好" has 你, 好."""
  texts = [unicodedata.normalize("NFKC", text) for text in texts]
  joined = "".join(f"{text}\n" for text in texts)
  codes = code_points(joined)
  folded, is_alone = (table[codes] for table in _tables())
  is_inside = folded != 0
  # A word begins where none is, and at and behind a character that is one by itself.
  goes_on = np.zeros(len(codes) + 1, bool)
  goes_on[1:-1] = is_inside[1:] & is_inside[:-1] & ~is_alone[1:] & ~is_alone[:-1]
  start, stop = np.flatnonzero(is_inside & ~goes_on[:-1]), np.flatnonzero(is_inside & ~goes_on[1:]) + 1
  ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
  return Words(joined, hash_spans(folded, start, stop), start, stop, np.searchsorted(start, ends))


def hash_spans(values: np.ndarray, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
  """uint64 hash of values[start:stop] of every span: of its values and their order, not of its place.

  A polynomial modulo 2^64 in hashes of the values, by differences of prefix sums, so that overlapping spans cost the same.
  """
  n = len(values) + 1
  with np.errstate(over="ignore"):
    powers, inverse = (_powers(base, n) for base in (_BASE, _INVERSE))
    sums = np.zeros(n, np.uint64)
    np.cumsum(splitmix(values.astype(np.uint64) + _BASE) * powers[:-1], out=sums[1:])
    return splitmix((sums[stop] - sums[start]) * inverse[start])


def code_points(text: str) -> np.ndarray:
  """The characters of a text as numbers, uint32."""
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _powers(base: np.uint64, n: int) -> np.ndarray:
  """base^0 to base^(n - 1), modulo 2^64."""
  powers = np.full(n, base)
  powers[0] = 1
  return np.cumprod(powers)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
  """By code point: the letter, mark or digit without case, 0 for what stands between words; whether it is a word by itself."""
  folded, is_alone = np.zeros(sys.maxunicode + 1, np.uint32), np.zeros(sys.maxunicode + 1, bool)
  for code in range(sys.maxunicode + 1):
    if unicodedata.category(chr(code))[0] in "LMN":
      plain = chr(code).casefold()
      folded[code] = ord(plain) if len(plain) == 1 else code
  for first, last in UNSPACED:
    is_alone[first : last + 1] = True
  return folded, is_alone
