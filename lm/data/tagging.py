"""Entities in words, and the tags that write them: BIO (Ramshaw and Marcus 1995, in the form of CoNLL 2002) and BIOES.

[("PER", 0, 2)] in three words is B-PER I-PER O in BIO, and B-PER E-PER O in BIOES, where an entity of one word is S-PER.
"""

import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from lm.data.tokenizer import UNSPACED, Tokenizer

SCHEMES = {"bio": "BI", "bioes": "BIES"}
OUTSIDE = "O"
# How a text without tokens is parted, by name. Space between words is part of none.
WORDS = {
  "word": re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\w)+|[^\w\s]"),
  "space": re.compile(r"\S+"),
  "character": re.compile(r"\S"),
}
Span = tuple[str, int, int]  # type of an entity, its first word, the word behind its last


def check(tag: str) -> str:
  """What is wrong with a tag, "" if it is O, or B, I, E or S with a type behind a hyphen."""
  prefix, _, kind = tag.partition("-")
  return "" if tag == OUTSIDE or kind and prefix in ("B", "I", "E", "S") else "accepted are O, and B-, I-, E-, S- with a type"


def types(tags: Iterable[str]) -> tuple[str, ...]:
  """The types of entities that tags name, sorted."""
  return tuple(sorted({tag.partition("-")[2] for tag in tags} - {""}))


def classes(kinds: Iterable[str], scheme: str) -> tuple[str, ...]:
  """All tags of a scheme: O first, then those of each type."""
  return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in SCHEMES[scheme]))


def read(tags: Sequence[str], strict: str = "") -> list[Span]:
  """The entities that a sentence's tags write, in their order.

  An entity goes on over I and E of its type and ends behind E and S. By default any tag but O may begin one, so that all
  schemes are read, and what a model says against its scheme too: O I-PER I-LOC B-LOC are three entities. So does seqeval,
  and CoNLL's own script. strict: a scheme whose rules an entity has to keep to be one, as in seqeval's strict mode: in bio
  it begins with B, in bioes it is S, or B and E with any I between.
  """
  found, first, before = [], None, ("", "")
  for i, tag in enumerate(itertools.chain(tags, [OUTSIDE])):
    prefix, _, kind = tag.partition("-")
    if prefix not in ("I", "E") or before[0] not in ("B", "I") or kind != before[1]:
      if first is not None and _keeps("".join(tag[0] for tag in tags[first:i]), strict):
        found.append((before[1], first, i))
      first = None if tag == OUTSIDE else i
    before = prefix, kind
  return found


def _keeps(prefixes: str, strict: str) -> bool:
  """Whether the prefixes of an entity's tags are those of the scheme; of any where it is ""."""
  patterns = {"": ".*", "bio": "BI*", "bioes": "S|BI*E"}
  return bool(re.fullmatch(patterns[strict], prefixes))


def write(spans: Iterable[Span], count: int, scheme: str) -> list[str]:
  """The tags of `count` words that hold these entities, none over another."""
  tags = [OUTSIDE] * count
  for kind, first, stop in spans:
    tags[first:stop] = [f"B-{kind}", *[f"I-{kind}"] * (stop - first - 1)]
    if scheme == "bioes":
      tags[stop - 1] = f"{'S' if stop == first + 1 else 'E'}-{kind}"
  return tags


def split_words(text: str, how: str) -> list[tuple[int, int]]:
  """Where the words of a text stand, as (start, stop) in characters; how: one of WORDS.

  "Go, 中国!" -> words "Go" "," "中" "国" "!"; by space "Go," "中国!"; by character each that is no space.
  """
  return [match.span() for match in WORDS[how].finditer(text)]


def find_words(text: str, words: Sequence[str]) -> list[tuple[int, int]] | None:
  """Where given words stand in their text, one behind the other; None if one is not there."""
  found, at = [], 0
  for word in words:
    start = text.find(word, at)
    if start < 0:
      return None
    at = start + len(word)
    found.append((start, at))
  return found


def align(text: str, places: Sequence[tuple[int, int]], tok: Tokenizer) -> tuple[list[int], np.ndarray]:
  """A text's ids, and for each the number of the word (from 1) of which it is the first piece, 0 for other pieces.

  "New York", words at (0, 3) and (4, 8): ids of "New" "▁Yo" "rk", words [1 2 0]. The text is encoded as a whole, so that
  a word has the space before it as the tokenizer wants it. Where a word has no piece of its own then, as two Chinese
  characters that are one piece, every word is encoded with what stands before it. A word that the tokenizer has nothing
  for even so (BERT's drops control characters) has no number.
  """
  ids, word = _first_pieces(text, places, tok)
  if np.count_nonzero(word) == len(places):
    return ids, word
  ids, found, before = [], [], 0
  for number, (start, stop) in enumerate(places, 1):
    own, first = _first_pieces(text[before:stop], [(start - before, stop - before)], tok)
    ids += own
    found.append(number * first)
    before = stop
  rest = tok.encode(text[before:])
  return ids + rest, np.concatenate([*found, np.zeros(len(rest), np.int32)])


def _first_pieces(text: str, places: Sequence[tuple[int, int]], tok: Tokenizer) -> tuple[list[int], np.ndarray]:
  """Ids, and the number of the word that each is the first piece of; a piece over several words is of the last one."""
  ids, spans = tok.encode_with_offsets(text)
  word = np.zeros(len(ids), np.int32)
  if not ids or not places:
    return ids, word
  starts, stops = np.asarray(places).T
  last = np.searchsorted(starts, spans[:, 1] - 1, side="right") - 1  # the word at or before each piece's last character
  meets = (last >= 0) & (spans[:, 1] > spans[:, 0]) & (spans[:, 0] < stops[np.maximum(last, 0)])
  number, piece = np.unique(np.where(meets, last + 1, 0), return_index=True)
  word[piece[number > 0]] = number[number > 0]
  return ids, word
