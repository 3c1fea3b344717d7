"""Multiple choice, as in SWAG (Zellers et al. 2018) and RACE (Lai et al. 2017): a score for each choice, a softmax over them.

Every choice is read beside the context, as BERT does (Devlin et al. 2018, section 4.4).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data.tokenizer import Tokenizer
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task
from lm.tasks.text_rows import POOLING, in_order

NO_LABEL = -1  # stored where an example has none
PLACES = CLS, CONTEXT, SEP, QUESTION, CHOICE, LAST = range(6)  # of a token beside its choice
NOWHERE = 2**15 - 1  # place of padding, behind all others


@dataclasses.dataclass(frozen=True)
class Choose(Task):
  """One of several texts that goes with a context, a question, or both. All examples have equally many choices.

  A row holds an example: a segment per choice, [cls context sep question choice sep], or [cls question sep choice sep]
  without a context, of which the part behind the first sep has token type 1. So `seq_len` is the length of all of them.

  `prepare({"context": "ab", "question": "c", "choices": ["x", "y"], "label": "1"})` stores the segments one token of each at a
  time, first what a shorter row gives up last: [cls cls sep sep sep sep " " " " x y c c a a b b], with the place of each, and
  label [1], the number of the choice; an example without a label stores [-1], which has no weight. A row that is cut to
  any length keeps all choices, and the context loses its end first.
  """

  choices: tuple[str, ...] = ()  # what labels call the choices, in their order; empty takes those of the source
  pooling: str = ""  # hidden state that is read of each: first, last, or the mean; unset is first, last of a causal model

  packed = False
  reads_texts = False
  prepare_fields = ("choices",)
  targets = "choices"
  evaluators = (("choice", "validation"), ("choice", "test"))
  head = "classify"

  def __post_init__(self):
    if self.pooling not in ("", *POOLING):
      raise ValueError(f"task.pooling={self.pooling!r}: accepted are {', '.join(POOLING)}")
    if len(set(self.choices)) < len(self.choices):
      raise ValueError(f"task.choices={self.choices!r}: a name stands twice")

  @property
  def num_segments(self) -> int:
    return len(self.choices)

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("chooser", num_outputs=1)

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "place": Field(("T",), pad=NOWHERE), "label": Field(())}

  def check(self, tok, seq_len):
    least = len(self.choices) * (tok.pair_separators + 3)
    if seq_len < least:
      raise ConfigError(f"config.seq_len={seq_len}: a row holds {len(self.choices)} choices, which take {least} tokens or more")

  def prepare(self, example, tok):
    choices = example.get("choices")
    if not isinstance(choices, list | tuple) or len(choices) != len(self.choices):
      number = len(choices) if isinstance(choices, list | tuple) else "no list"
      raise ConfigError(f"choices: {number} where every example has {len(self.choices)} (task.choices={self.choices!r})")
    label = example.get("label")
    if label is not None and str(label) not in self.choices:
      raise ConfigError(f"label={label!r}: is none of task.choices, {', '.join(self.choices)[:200]}")
    laid = self._lay_out(example, choices, tok)
    place = [number * len(PLACES) + places for number, (_, places) in enumerate(laid)]
    kept = np.argsort(np.concatenate([np.arange(len(places)) for places in place]), kind="stable")
    return [
      {
        "tokens": np.concatenate([tokens for tokens, _ in laid])[kept],
        "place": np.concatenate(place)[kept].astype(np.int32),
        "label": np.int32(NO_LABEL if label is None else self.choices.index(str(label))),
      }
    ]

  def _lay_out(self, example: Mapping[str, Any], choices: Any, tok: Tokenizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and places of each segment, in the order in which a shorter row gives them up, last first."""
    context, question = (example.get(name) or "" for name in ("context", "question"))
    if not context and not question:
      raise ConfigError("a row has neither context nor question, so its choices go with nothing")
    beside = tok.encode(question) if context and question else []
    before = tok.encode(context or question)
    specials = [tok.cls_id, *[tok.sep_id] * (tok.pair_separators + 1)]
    found = []
    for choice in choices:
      said = tok.encode(f" {choice}" if beside else choice)
      tokens = np.asarray([*specials, *said, *beside, *before], np.int32)
      sizes = [1, tok.pair_separators, 1, len(said), len(beside), len(before)]
      found.append((tokens, np.repeat([CLS, SEP, LAST, CHOICE, QUESTION, CONTEXT], sizes)))
    return found

  def corrupt(self, rows, noise, tok, width):
    tokens_RT, place_RT = in_order(rows, "tokens", "place")
    choice_RT, place_RT = np.divmod(place_RT, len(PLACES))
    real_RT, column_RT = choice_RT < len(self.choices), np.broadcast_to(np.arange(tokens_RT.shape[1]), tokens_RT.shape)
    starts_RT = np.maximum.accumulate(np.where(real_RT & (place_RT == CLS), column_RT, 0), axis=1)
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["label"] != NO_LABEL)
    second_RT = real_RT & (place_RT > SEP) & (tok.pair_separators == 1)  # two separators tell the texts apart by themselves
    return {
      "tokens": tokens_RT,
      "segment_ids": np.where(real_RT, choice_RT + 1, 0).astype(np.int32),
      "positions": np.where(real_RT, column_RT - starts_RT, 0).astype(np.int32),
      "token_types": second_RT.astype(np.int32),
      "label": np.maximum(rows["label"], 0),
      "weights": counted_R.astype(np.float32),
    }

  def show_target(self, row):
    return self.choices[row["label"]] if row["weights"] else ""

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return forward.token_sums(self._read(forward, batch, rng), batch["label"], batch["weights"], batch, rng)

  def predict(self, forward, batch):
    scores_BN = forward.probabilities(self._read(forward, batch, None), batch)
    return {"scores": scores_BN, "label": batch["label"], "weights": batch["weights"]}

  def _read(self, forward, batch, rng):
    """The hidden states [B, N, D] that the head reads, one of each choice."""
    return forward.pooled_segments(batch, rng, self.pooling or ("last" if forward.causal else "first"), self.num_segments)

  def describe_predictions(self, arrays, tok):
    best_R, scores_RN = arrays["scores"].argmax(-1), arrays["scores"].tolist()
    return [
      {"label": self.choices[best], "scores": dict(zip(self.choices, scores, strict=True))}
      for best, scores in zip(best_R, scores_RN, strict=True)
    ]
