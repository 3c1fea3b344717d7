"""Answers that stand in a text (SQuAD, Rajpurkar et al. 2016 and 2018): their pieces, and the likeliest of all spans."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SPAN, NONE = "span", "none"
KINDS = (SPAN, NONE)  # what the answer of a question may be; NONE: the text does not say


def kinds(examples: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
  """What the answers of these examples are, in the order of KINDS; an example without "answers" says nothing."""
  found = {SPAN if example["answers"] else NONE for example in examples if "answers" in example}
  return tuple(kind for kind in KINDS if kind in found)


def choose(answers: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
  """The characters (start, stop) of the answer to learn: the commonest, of those whose place is known, of equal ones the first.

  answers: [{"text": "Rome", "start": 12}, ...], with "unsure" where the text stands elsewhere too and may be meant there.
  """
  sure = [answer for answer in answers if not answer.get("unsure")] or answers
  places = Counter((answer["start"], answer["start"] + len(answer["text"])) for answer in sure)
  return places.most_common(1)[0][0]


def pieces(spans_N2: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
  """The first and the last piece that hold some of the characters start to stop; None where the tokenizer dropped them.

  spans_N2: where each piece stands, as `encode_with_offsets` gives it. Of [[0 3] [3 8] [9 12]] the characters 4 to 10 are in
  the pieces 1 to 2.
  """
  meets = np.flatnonzero((spans_N2[:, 0] < stop) & (spans_N2[:, 1] > start) & (spans_N2[:, 1] > spans_N2[:, 0]))
  return (int(meets[0]), int(meets[-1])) if meets.size else None


def best_spans(
  scores_T2: np.ndarray, begins_T: np.ndarray, ends_T: np.ndarray, longest: int, count: int
) -> list[tuple[float, int, int]]:
  """(score, first piece, last piece) of the best spans of at most `longest` pieces, the best first; all are looked at.

  scores_T2: of each piece as a first and as a last one, which are added. begins_T, ends_T: where a span may begin and end.
  """
  start_T, end_T = np.where(begins_T, scores_T2[:, 0], -np.inf), np.where(ends_T, scores_T2[:, 1], -np.inf)
  padded = np.concatenate([end_T, np.full(longest - 1, -np.inf)])
  scores = (start_T[:, None] + np.lib.stride_tricks.sliding_window_view(padded, longest)).ravel()
  top = np.argpartition(-scores, count)[:count] if count < scores.size else np.arange(scores.size)
  top = top[np.lexsort((top, -scores[top]))]
  return [(float(scores[i]), int(i // longest), int(i // longest + i % longest)) for i in top if np.isfinite(scores[i])]
