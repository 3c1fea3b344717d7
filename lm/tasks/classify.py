"""Classification of a text or a pair: one label per row, read from [CLS], the last token, or the mean of all."""

import dataclasses

import numpy as np

from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task

POOLING = ("first", "last", "mean")
NO_LABEL = -1  # stored where an example has none
PLACES = CLS, FIRST, SEP, SECOND, LAST = range(5)  # of a token in its row; a single text has no SEP and no SECOND


@dataclasses.dataclass(frozen=True)
class Classify(Task):
  """Multi-class classification.

  `prepare({"text": "ab", "label": "json"})` stores tokens [cls sep a b] and label [3] if "json" is label number 3; an
  example without a label stores [-1], which has no weight. The pair "ab", "xyz" is stored as [cls sep sep a x b y z]: the
  order in which a shorter row gives tokens up, last first, so that a row cut to any length keeps its specials and loses
  the longer text's end first. `corrupt` puts them in their places: [cls a b sep] and [cls a b sep x y z sep], of which
  pairs have token types [0 0 0 0 1 1 1 1]; or [cls a b sep sep x y z sep], all of type 0, where a tokenizer
  (RoBERTa's) has two `pair_separators`.
  """

  labels: tuple[str, ...] = ()  # the label set; empty takes that of the source's training split
  pooling: str = ""  # hidden state that is read: first, last, or the mean over all; unset is first, last of a causal model
  pair: bool = False  # whether examples have two texts; true where the source says so

  packed = False
  prepare_fields = ("labels", "pair")
  evaluators = (("classification", "validation"), ("classification", "test"))
  head = "classify"

  def __post_init__(self):
    if self.pooling not in ("", *POOLING):
      raise ValueError(f"task.pooling={self.pooling!r}: accepted are {', '.join(POOLING)}")

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("classifier", num_outputs=len(self.labels))

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "label": Field(()), "place": Field(("T",), pad=len(PLACES))}

  def prepare(self, example, tok):
    if "label" in example and example["label"] not in self.labels:
      raise ValueError(f"task.labels: {example['label']!r} is not among the {len(self.labels)} labels")
    label = np.int32(self.labels.index(example["label"]) if "label" in example else NO_LABEL)
    first, second = tok.encode(example["text"]), tok.encode(example["text_pair"]) if self.pair else []
    ends = [*[SEP] * tok.pair_separators, LAST] if self.pair else [LAST]
    tokens = np.asarray([tok.cls_id, *[tok.sep_id] * len(ends), *first, *second], np.int32)
    place = np.asarray([CLS, *ends, *[FIRST] * len(first), *[SECOND] * len(second)], np.int32)
    kept = np.argsort([-1, *[-1] * len(ends), *range(len(first)), *range(len(second))], kind="stable")
    return [{"tokens": tokens[kept], "place": place[kept], "label": label}]

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["label"] != NO_LABEL)
    order_RT = np.argsort(rows["place"], axis=1, kind="stable")
    place_RT = np.take_along_axis(rows["place"], order_RT, axis=1)
    typed = tok.pair_separators == 1  # two separators tell the texts apart by themselves
    return {
      "tokens": np.take_along_axis(rows["tokens"], order_RT, axis=1),
      "label": np.maximum(rows["label"], 0),
      "weights": counted_R.astype(np.float32),
    } | ({"token_types": (np.isin(place_RT, (SECOND, LAST)) & typed).astype(np.int32)} if self.pair else {})

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return forward.token_sums(self._read(forward, batch, rng), batch["label"], batch["weights"], batch, rng)

  def predict(self, forward, batch):
    scores_BN = forward.probabilities(self._read(forward, batch, None), batch)
    return {"scores": scores_BN, "label": batch["label"], "weights": batch["weights"]}

  def describe_predictions(self, arrays, tok):
    best_R, scores_RN = arrays["scores"].argmax(-1), arrays["scores"].tolist()
    return [
      {"label": self.labels[best], "scores": dict(zip(self.labels, scores, strict=True))}
      for best, scores in zip(best_R, scores_RN, strict=True)
    ]

  def _read(self, forward, batch, rng):
    return forward.pooled(batch, rng, self.pooling or ("last" if forward.causal else "first"))
