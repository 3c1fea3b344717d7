"""What tasks over a text or a pair share: a row that keeps its specials however short it is cut, and one state read from it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.tokenizer import Tokenizer
from lm.shapes import Field
from lm.tasks.task import Arrays, Task

POOLING = ("first", "last", "mean")
PLACES = CLS, FIRST, SEP, SECOND, LAST = range(5)  # of a token in its row; a single text has no SEP and no SECOND
PLACE = Field(("T",), pad=len(PLACES))  # padding comes last


def lay_out(tok: Tokenizer, first: Sequence[int], second: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Tokens and their places, in the order in which a shorter row gives tokens up, last first.

  The pair "ab", "xyz" is [cls sep sep a x b y z]: a row cut to any length keeps its specials, and loses the longer text's
  end first. second: None of a single text.
  """
  ends = [LAST] if second is None else [*[SEP] * tok.pair_separators, LAST]
  others = second or []
  tokens = np.asarray([tok.cls_id, *[tok.sep_id] * len(ends), *first, *others], np.int32)
  place = np.asarray([CLS, *ends, *[FIRST] * len(first), *[SECOND] * len(others)], np.int32)
  kept = np.argsort([-1, *[-1] * len(ends), *range(len(first)), *range(len(others))], kind="stable")
  return tokens[kept], place[kept]


def in_order(rows: Arrays, *names: str) -> list[np.ndarray]:
  """Columns [R, T] of rows as `lay_out` stores them, in the order in which they are read: [cls a b sep x y z sep]."""
  order_RT = np.argsort(rows["place"], axis=1, kind="stable")
  return [np.take_along_axis(rows[name], order_RT, axis=1) for name in names]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRows(Task):
  """Base of tasks that say one thing of a text or a pair, read from [CLS], the last token, or the mean of all.

  `corrupt` puts tokens in their places: [cls a b sep] and [cls a b sep x y z sep], of which pairs have token types
  [0 0 0 0 1 1 1 1]; or [cls a b sep sep x y z sep], all of type 0, where a tokenizer (RoBERTa's) has two `pair_separators`.
  """

  pooling: str = ""  # hidden state that is read: first, last, or the mean over all; unset is first, last of a causal model
  pair: bool = False  # whether examples have two texts; true where the source says so
  head_name: str = ""  # of its own head, where tasks of one run have other labels; unset is classify, which all share

  packed = False

  def __post_init__(self):
    if self.pooling not in ("", *POOLING):
      raise ValueError(f"task.pooling={self.pooling!r}: accepted are {', '.join(POOLING)}")

  @property
  def head(self):
    return self.head_name or "classify"

  def _columns(self, example: Mapping[str, Any], tok: Tokenizer) -> dict[str, np.ndarray]:
    """The stored tokens and places of an example."""
    second = tok.encode(example["text_pair"]) if self.pair else None
    tokens, place = lay_out(tok, tok.encode(example["text"]), second)
    return {"tokens": tokens, "place": place}

  def _inputs(self, rows: Arrays, tok: Tokenizer) -> dict[str, np.ndarray]:
    """Tokens, and token types of pairs, as the model reads them."""
    tokens_RT, place_RT = in_order(rows, "tokens", "place")
    if not self.pair:
      return {"tokens": tokens_RT}
    typed = tok.pair_separators == 1  # two separators tell the texts apart by themselves
    return {"tokens": tokens_RT, "token_types": (np.isin(place_RT, (SECOND, LAST)) & typed).astype(np.int32)}

  def _read(self, forward, batch, rng):
    """The hidden state [B, D] that the head reads."""
    return forward.pooled(batch, rng, self.pooling or ("last" if forward.causal else "first"))
