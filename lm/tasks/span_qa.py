"""Extractive question answering: where in a text the answer of a question stands, or that the text has none.

BERT's form of it (Devlin et al. 2018, sections 4.2 and 4.3): a start and an end are chosen among the tokens of a row, [CLS] for
no answer, and a text that is longer than a row is read in overlapping windows.
"""

import dataclasses

import numpy as np

from lm.config import ConfigError
from lm.data import answers as found_in
from lm.data.answers import NONE, SPAN
from lm.data.store import WINDOW
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.windowed import Windowed

# What a token of a row is, 0 on padding: [CLS], which stands for no answer; the question and what parts it from the text; the
# last special; a piece of the text; one that has most context in this window, so that an answer may begin there.
ROLES = NULL, QUESTION, LAST, TEXT, OWN = range(1, 6)
SPECIALS = 4  # of a row at most: cls, sep (RoBERTa: twice) behind the question, sep behind the text
COLUMNS = ("role", "char_start", "char_stop")


@dataclasses.dataclass(frozen=True)
class SpanQa(Windowed):
  """Answers in a text.

  `prepare({"text": "who", "text_pair": "Ann, Bo", "answers": [{"text": "Bo", "start": 5}]})` stores the tokens [cls who sep Ann
  , Bo sep] with the role of each and the characters that it stands for, and the answer as places of the row: first [5], last
  [5]. A window that does not hold all of the answer has none, [0] and [0], as a question with "answers": [] has. One without
  "answers" has no weight.

  The loss is the mean of the cross-entropies of start and end over the row's tokens. A prediction is the best span of all
  windows by the sum of its two logits, and none where the least of the windows' sums for [CLS] is above that by more than
  `null_threshold`.
  """

  answers: tuple[str, ...] = ()  # what there may be: span, none; empty takes those of the source's training split
  max_query_length: int = 64  # [tokens] of a question; what is behind is cut
  max_answer_length: int = 30  # [tokens] of a predicted answer at most; longer ones are learned all the same
  n_best: int = 20  # spans that a prediction lists, and shares its probability among
  null_threshold: float = 0.0  # logits that "none" has to be above the best span, where questions may have no answer

  prepare_fields = ("answers", "max_query_length", "window", "stride")
  targets = "answers"
  pair = True
  evaluators = (("span_qa", "validation"), ("span_qa", "test"))
  head = "span"

  def __post_init__(self):
    super().__post_init__()
    if not set(self.answers) <= set(found_in.KINDS) or self.answers and SPAN not in self.answers:
      raise ConfigError(f"task.answers={','.join(self.answers)}: accepted are {SPAN}, and {SPAN},{NONE}")
    for name in ("max_query_length", "max_answer_length", "n_best"):
      if getattr(self, name) < 1:
        raise ConfigError(f"task.{name}={getattr(self, name)}: must be at least 1")
    if self.null_threshold and self.answers == (SPAN,):
      raise ConfigError(f"task.null_threshold={self.null_threshold}: no effect, every question of the data has an answer")

  @property
  def num_beside(self):
    return SPECIALS + self.max_query_length

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("span", num_outputs=2)

  @property
  def fields(self) -> dict[str, Field]:
    per_token = {name: Field(("T",)) for name in ("tokens", *COLUMNS)}
    return per_token | {name: Field(()) for name in ("first", "last", "labelled")}

  def prepare(self, example, tok):
    question = tok.encode(example["text"])[: self.max_query_length]
    ids, spans_N2 = tok.encode_with_offsets(example["text_pair"])
    front = [tok.cls_id, *question, *[tok.sep_id] * tok.pair_separators]
    labelled, answer = self._answer(example, spans_N2)
    sequences = []
    for i, (start, stop, first, end) in enumerate(self.windows(len(ids), len(front) + 1)):
      role = np.repeat([NULL, QUESTION, TEXT, OWN, TEXT, LAST], [1, len(front) - 1, first - start, end - first, stop - end, 1])
      char_start, char_stop = np.pad(spans_N2[start:stop], ((len(front), 1), (0, 0))).T
      inside = answer is not None and start <= answer[0] and answer[1] < stop
      place = np.asarray(answer) - start + len(front) if inside else np.zeros(2)
      columns = {
        "tokens": [*front, *ids[start:stop], tok.sep_id], "role": role, "char_start": char_start, "char_stop": char_stop,
        "first": place[0], "last": place[1], "labelled": labelled, WINDOW: i,
      }  # fmt: skip
      sequences.append({name: np.asarray(values, np.int32) for name, values in columns.items()})
    return sequences

  def _answer(self, example, spans_N2) -> tuple[bool, tuple[int, int] | None]:
    """Whether it is known, and the first and last piece of the answer, None where there is none."""
    if "answers" not in example:
      return False, None
    if not example["answers"]:
      if NONE not in self.answers:
        raise ConfigError(f"answers: has none, and task.answers={','.join(self.answers)} knows no such question")
      return True, None
    answer = found_in.pieces(spans_N2, *found_in.choose(example["answers"]))
    return answer is not None, answer

  def corrupt(self, rows, noise, tok, width):
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows["labelled"] > 0)
    second_RT = (rows["role"] >= LAST) & (tok.pair_separators == 1)  # two separators tell the texts apart by themselves
    return {
      "tokens": rows["tokens"],
      "token_types": second_RT.astype(np.int32),
      "answer_positions": np.stack([rows["first"], rows["last"]], axis=1),
      "weights": counted_R.astype(np.float32),
    } | {name: rows[name] for name in COLUMNS}

  def show_target(self, row):
    first, last = row["answer_positions"]
    if not row["weights"] or row["role"][first] == NULL:
      return NONE if row["weights"] else ""
    return f"characters {row['char_start'][first]} to {row['char_stop'][last]}"

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    weights_B2 = batch["weights"][:, None].repeat(2, axis=1) / 2
    return forward.place_sums(forward(batch, rng), batch["answer_positions"], weights_B2, batch, rng)

  def predict(self, forward, batch):
    return {"logits": forward.head(forward(batch), batch)} | {name: batch[name] for name in COLUMNS}

  def join(self, arrays, owner_N):
    """The best spans of every example in characters, [R, n_best], the best first, -inf where there are no more; `null` [R]."""
    R, K = int(owner_N[-1]) + 1, self.n_best
    found = {name: np.zeros((R, K), np.int32) for name in ("start", "stop")} | {"score": np.full((R, K), -np.inf, np.float32)}
    null_R = np.full(R, np.inf, np.float32)
    spans: list[dict[tuple[int, int], float]] = [{} for _ in range(R)]
    for n, owner in enumerate(owner_N):
      role_T, char_start_T, char_stop_T = (arrays[name][n] for name in COLUMNS)
      has_text_T, logits_T2 = char_stop_T > char_start_T, arrays["logits"][n]
      null_R[owner] = min(null_R[owner], logits_T2[role_T == NULL].sum())
      begins_T, ends_T = (role_T == OWN) & has_text_T, (role_T >= TEXT) & has_text_T
      for score, first, last in found_in.best_spans(logits_T2, begins_T, ends_T, self.max_answer_length, K):
        place = int(char_start_T[first]), int(char_stop_T[last])
        spans[owner][place] = max(score, spans[owner].get(place, -np.inf))
    for r, of_example in enumerate(spans):
      for k, ((start, stop), score) in enumerate(sorted(of_example.items(), key=lambda item: -item[1])[:K]):
        found["start"][r, k], found["stop"][r, k], found["score"][r, k] = start, stop, score
    return found | {"null": null_R}

  def describe_predictions(self, arrays, tok):
    rows = zip(*(arrays[name] for name in ("start", "stop", "score", "null")), strict=True)
    return [self._describe(*row) for row in rows]

  def quote(self, described, example):
    """Texts of the spans, without space around them; "" where no answer is said."""

    def of_span(span):
      text = example["text_pair"][span["start"] : span["stop"]]
      start = span["start"] + len(text) - len(text.lstrip())
      return span | {"start": start, "stop": start + len(text.strip())}

    text = lambda span: example["text_pair"][span["start"] : span["stop"]]
    listed = [{"text": text(span), **span} for span in map(of_span, described["n_best"])]
    if described["start"] is None:
      return {"answer": ""} | described | {"n_best": listed}
    best = of_span(described)
    return {"answer": text(best)} | best | {"n_best": listed}

  def _describe(self, start_K, stop_K, score_K, null):
    """The answer's place and probability, None without one; all spans with theirs; no_answer, that of none."""
    spans = np.isfinite(score_K)
    allowed = np.where(spans, score_K, -np.inf), null if NONE in self.answers or not spans.any() else -np.inf
    scores = np.append(*allowed)
    shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    places = list(zip(start_K[spans].tolist(), stop_K[spans].tolist(), shares[:-1][spans].tolist(), strict=True))
    listed = [{"start": start, "stop": stop, "score": share} for start, stop, share in places]
    is_none = not listed or scores[-1] - scores[0] > self.null_threshold
    best = {"start": None, "stop": None, "score": float(shares[-1])} if is_none else listed[0]
    return best | ({"no_answer": float(shares[-1])} if NONE in self.answers else {}) | {"n_best": listed}
