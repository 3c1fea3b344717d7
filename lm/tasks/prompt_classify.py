"""Classification by the words that a language model puts into a pattern, for few labelled texts (Schick and Schütze 2021).

There is no new head, so that a pretrained model has an opinion before the first step.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

from lm.config import ConfigError
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.classify import Classify

TEXT, PAIR, ANSWER = "{text}", "{text_pair}", "{answer}"
PLACES = {TEXT: 1, PAIR: 2}  # of a stored token: in front of the texts, in the first or in the second; padding comes last
MASK = -1  # in the place of the answer


class Plan(NamedTuple):
  """How the labels' words are asked for.

  fills: what stands in the place of the answer in each segment. ids_PN: the piece of label n that is predicted at site p, -1
  for none. site_P: segment and place in the answer of each site.
  """

  fills: list[tuple[int, ...]]
  ids_PN: np.ndarray
  site_P: list[tuple[int, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptClassify(Classify):
  """A label's score is the log-probability of its word at {answer}, the sum over the word's pieces; the loss is the softmax's.

  A masked model fills as many masks as the word has pieces, each by itself; words of as many pieces share a segment of the
  row. An autoregressive model goes on from the pattern, which has to end with {answer}, and sees a word's earlier pieces before
  the later ones; words that begin alike share a segment, and so do all of a single piece. So `seq_len` is that of all segments
  together. A longer text is cut, alike in all of them, of a pair the longer one first; the pattern never is.

  `prepare({"text": "ab"})` stores [cls a b]. With pattern "{text} It was {answer}." and words of one piece a row is [cls a b it
  was mask . sep]; of an autoregressive model, without the full stop, [bos a b it was]. A space in front of a slot belongs to
  what fills it.
  """

  pattern: str = "{text} {answer}"  # has {text}, {answer} (last, for an autoregressive model) and, of pairs, {text_pair}
  verbalizers: tuple[str, ...] = ()  # label=word; a label without one stands for itself, with blanks for its underscores
  reads: str = ""  # head, mlm or lm: the model's, to be left unset
  pieces: tuple[tuple[int, ...], ...] = ()  # of the pattern's words, then of the labels': the tokenizer's, to be left unset

  prepare_fields = ("labels", "pair", "pattern")

  def __post_init__(self):
    super().__post_init__()
    if self.pooling:
      raise ValueError(f"task.pooling={self.pooling!r}: no effect; the pattern says where the model is read")
    slots = [slot for slot, _ in self._parts if slot]
    if set(slots) | {PAIR} != {TEXT, PAIR, ANSWER} or len(set(slots)) < len(slots):
      slots = f"{TEXT}, {ANSWER} and, of pairs, {PAIR}"
      raise ValueError(f"task.pattern={self.pattern!r}: accepted is text with {slots}, once each")

  @property
  def head(self):
    return self.reads

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec(self.reads)

  @property
  def num_segments(self) -> int:
    return len(self._plan.fills)

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "place": Field(("T",), pad=1 + len(PLACES)), "label": Field(())}

  def read_with(self, tok, causal):
    if self.pieces or self.reads:
      name, whose = ("pieces", "tokenizer") if self.pieces else ("reads", "model")
      raise ConfigError(f"task.{name}={getattr(self, name)!r}: is the {whose}'s; leave it unset")
    if (PAIR in self.pattern) != self.pair:
      number = "two texts" if self.pair else "one text"
      raise ConfigError(f"task.pattern={self.pattern!r}: the data has {number} per example, of which {PAIR} is the second")
    if causal and not self.pattern.endswith(ANSWER):
      raise ConfigError(f"task.pattern={self.pattern!r}: an autoregressive model needs one that ends with {ANSWER}")
    if not causal and tok.mask_id is None:
      raise ConfigError("task 'prompt_classify' needs a tokenizer with a mask token; this one has none")
    words = [dict(self._parts)[ANSWER] + word for word in self._words()]
    literals = [tuple(tok.encode(text)) for slot, text in self._parts if not slot]
    answers = [tuple(tok.encode(word)) for word in words]
    for i, ids in enumerate(answers):
      if not ids or ids in answers[:i]:
        wrong = "that of another label" if ids else "nothing to the tokenizer"
        raise ConfigError(
          f"task.verbalizers: the word {words[i]!r} of label {self.labels[i]!r} is {wrong}; label=word gives others"
        )
    return dataclasses.replace(self, reads="lm" if causal else "mlm", pieces=(*literals, *answers))

  def check(self, tok, seq_len):
    if seq_len < (least := int(self.row_cost(np.asarray([2]))[0])):
      segments = f"{self.num_segments} segments of the pattern"
      raise ConfigError(f"config.seq_len={seq_len}: a row holds {segments} with the labels' words; accepted is {least} or more")

  def row_cost(self, lengths_N):
    around = sum(map(len, self.pieces[: -len(self.labels)])) + (1 if self.reads == "lm" else 2)
    fixed = sum(around + len(fill) for fill in self._plan.fills)
    return np.where(lengths_N > 0, self.num_segments * (lengths_N - 1) + fixed, 0)

  def _columns(self, example, tok):
    before = dict(self._parts)
    texts = [tok.encode(before[slot] + example[slot[1:-1]]) for slot in PLACES if slot in before]
    tokens = np.asarray([tok.bos_id if self.reads == "lm" else tok.cls_id, *sum(texts, [])], np.int32)
    place = np.asarray([0, *np.repeat(np.arange(len(texts)) + 1, list(map(len, texts)))], np.int32)
    kept = np.argsort([-1, *[i for text in texts for i in range(len(text))]], kind="stable")
    return {"tokens": tokens[kept], "place": place[kept]}

  def _inputs(self, rows, tok):
    filled_R1, (R, T) = rows["segment_ids"][:, :1] > 0, rows["tokens"].shape
    constant = lambda ids: (np.broadcast_to(np.asarray(ids, np.int32), (R, len(ids))), np.repeat(filled_R1, len(ids), axis=1))
    stored = lambda place: (rows["tokens"], rows["place"] == place)
    blocks, first, answer = [], [], []  # of a segment: the number of its first block, and of its answer
    for fill in self._plan.fills:
      literals = iter(self.pieces)
      first.append(len(blocks))
      blocks.append(stored(0))
      for slot, _ in self._parts:
        if slot == ANSWER:
          answer.append(len(blocks))
          blocks.append(constant([tok.mask_id if i == MASK else i for i in fill]))
        else:
          blocks.append(stored(PLACES[slot]) if slot else constant(next(literals)))
      blocks += [] if self.reads == "lm" else [constant([tok.sep_id])]
    ends_RK = np.cumsum(np.stack([real.sum(1) for _, real in blocks], axis=1), axis=1)
    begins_RK = np.pad(ends_RK, ((0, 0), (1, 0)))[:, :-1]
    real_RW = np.concatenate([real for _, real in blocks], axis=1)
    row, column = np.nonzero(real_RW)
    to = (np.cumsum(real_RW, axis=1) - 1)[row, column]
    tokens_RT, segment_RT = np.zeros((R, T), np.int32), np.zeros((R, T), np.int32)
    tokens_RT[row, to] = np.concatenate([ids for ids, _ in blocks], axis=1)[row, column]
    of_block = np.searchsorted(first, np.arange(len(blocks)), side="right")
    segment_RT[row, to] = np.repeat(of_block, [real.shape[1] for _, real in blocks])[column]
    starts_RS = np.concatenate([np.zeros((R, 1), int), begins_RK[:, first]], axis=1)
    positions_RT = np.where(segment_RT > 0, np.arange(T)[None, :] - np.take_along_axis(starts_RS, segment_RT, axis=1), 0)
    # A mask says what stands in its place, a word what comes behind it.
    sites = [begins_RK[:, answer[segment]] + i - (self.reads == "lm") for segment, i in self._plan.site_P]
    sites_RP = np.maximum(np.stack(sites, axis=1), 0).astype(np.int32)
    inputs = {"tokens": tokens_RT, "segment_ids": segment_RT, "positions": positions_RT.astype(np.int32)}
    return inputs | {"site_positions": sites_RP}

  def _sums(self, forward, batch, weights, rng):
    return forward.choice_sums(self._scores(forward, batch, rng), batch["label"], weights)

  def _probabilities(self, forward, batch):
    return forward.softmax(self._scores(forward, batch, None))

  def _scores(self, forward, batch, rng):
    return forward.choice_scores(forward.at(batch["site_positions"], batch, rng), self._plan.ids_PN, batch)

  @functools.cached_property
  def _parts(self) -> list[tuple[str, str]]:
    """(slot, what stands in front of what fills it: a space or nothing) and ("", text), in their order."""
    found, space = [], ""
    for part in filter(None, re.split(f"({TEXT}|{PAIR}|{ANSWER})", self.pattern)):
      if part in (TEXT, PAIR, ANSWER):
        found.append((part, space))
        space = ""
      else:
        text = part.removesuffix(" ")
        space = part[len(text) :]
        found += [("", text)] if text else []
    return found

  def _words(self) -> list[str]:
    """The word of each label."""
    given: dict[str, str] = {}
    for entry in self.verbalizers:
      label, equals, word = entry.partition("=")
      if label not in self.labels or label in given or not equals or not word.strip():
        raise ConfigError(
          f"task.verbalizers={entry!r}: accepted are label=word, each label once, of {', '.join(self.labels)[:200]}"
        )
      given[label] = word
    return [given.get(label, label.replace("_", " ")) for label in self.labels]

  @functools.cached_property
  def _plan(self) -> Plan:
    words = self.pieces[-len(self.labels) :]
    if self.reads == "lm":
      begins = sorted({word[:-1] for word in words}, key=lambda ids: (-len(ids), ids))
      fills = [ids for i, ids in enumerate(begins) if not any(other[: len(ids)] == ids for other in begins[:i])]
      of_word = [next(v for v, fill in enumerate(fills) if fill[: len(word) - 1] == word[:-1]) for word in words]
    else:
      lengths = sorted({len(word) for word in words})
      fills, of_word = [(MASK,) * length for length in lengths], [lengths.index(len(word)) for word in words]
    site_P = sorted({(segment, i) for segment, word in zip(of_word, words, strict=True) for i in range(len(word))})
    ids_PN = np.full((len(site_P), len(words)), -1, np.int32)
    for n, (segment, word) in enumerate(zip(of_word, words, strict=True)):
      for i, piece in enumerate(word):
        ids_PN[site_P.index((segment, i)), n] = piece
    return Plan(fills, ids_PN, site_P)
