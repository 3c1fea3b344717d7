"""Recommendation by text: which item a user takes next, from the texts of those before it. A bi-encoder.

The history and an item are encoded apart, by one backbone, and scored by their cosine. So every item is encoded once, however
many users there are: to rank 9,742 films for 610 users a cross-encoder, which reads the history beside each, would need 400
times the tokens. That one is the task `choose`, for few candidates: the history is its context, the items are its choices.
"""

import dataclasses

import numpy as np

from lm.config import ConfigError
from lm.data.tokenizer import Tokenizer
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task
from lm.tasks.text_rows import POOLING, in_order

KINDS = ("bpr", "pointwise")
PLACES = CLS, HISTORY, LAST, ITEM = range(4)  # of a token in its row
NOWHERE = len(PLACES)  # place of padding, behind all others
USER, POSITIVE = 0, 1  # segments of a row; drawn items follow
MAX_NEGATIVES = 32  # draws that the noise has for partners (lm.data.loader)


@dataclasses.dataclass(frozen=True)
class Rank(Task):
  """Rows of a user's history, the item that came next, and items drawn for comparison, each a segment that sees itself alone.

  `prepare({"query": "ab", "positive": "x"})` stores tokens [cls sep cls x sep a b]: a row that is cut loses the history's
  end, its oldest part as `interactions` writes it. `prepare({"item": "y"})`, of an item of the catalogue, stores [cls y sep] in
  the column `candidate` and no tokens, so that it takes no row and can be drawn. `corrupt` draws `num_negatives` of the
  catalogue anew in every epoch, all alike, by the hash of (seed, epoch, example): [cls a b sep] [cls x sep] [cls y sep]. One
  that is the positive has no weight; that the user knows it too is left to chance, as in-batch negatives do.

  With s the score of an item, a learned scale times the cosine, and i, j the positive and a drawn item:
    bpr: -log sigmoid(s_i - s_j) (Rendle et al. 2009)
    pointwise: -log sigmoid(s_i + b) and -log sigmoid(-s_j - b), b learned; the mean over all of them
  Sums per example: loss, and accuracy, the share of drawn items that score less (equal ones count a half).
  """

  kind: str = "bpr"  # of loss: bpr (the positive against each drawn item), or pointwise (binary cross-entropy of each alone)
  num_negatives: int = 4  # items that are drawn for every positive, 1 to 32
  item_len: int = 32  # [tokens] of an item's text at most, specials included; the rest of a row is the history's
  pooling: str = "mean"  # hidden state that stands for a text: first, last, or the mean over all tokens

  packed = False
  prepare_fields = ("item_len",)
  targets = "items"
  evaluators = (("ranking", "validation"), ("ranking", "test"))
  head = "rank"

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"task.kind={self.kind!r}: accepted are {', '.join(KINDS)}")
    if not 1 <= self.num_negatives <= MAX_NEGATIVES:
      raise ValueError(f"task.num_negatives={self.num_negatives}: accepted are 1 to {MAX_NEGATIVES}")
    if self.item_len < 3:
      raise ValueError(f"task.item_len={self.item_len}: must be 3 or more, two of which are specials")
    if self.pooling not in POOLING:
      raise ValueError(f"task.pooling={self.pooling!r}: accepted are {', '.join(POOLING)}")

  @property
  def num_segments(self) -> int:
    return 2 + self.num_negatives

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("similarity", num_outputs=int(self.kind == "pointwise"))

  @property
  def fields(self) -> dict[str, Field]:
    own = {"tokens": Field(("T",)), "place": Field(("T",), pad=NOWHERE)}
    drawn = lambda i: Field(("T",), pad=-1, column="candidate", partner=i + 1)
    return own | {f"negative_{i}": drawn(i) for i in range(self.num_negatives)}

  def check(self, tok, seq_len):
    least = (1 + self.num_negatives) * self.item_len + 3
    if seq_len < least:
      words = (
        f"with task.num_negatives={self.num_negatives} and task.item_len={self.item_len} a row needs {least} tokens or more"
      )
      raise ConfigError(f"config.seq_len={seq_len}: {words}")

  def prepare(self, example, tok):
    nothing = np.zeros(0, np.int32)
    if "item" in example:
      return [{"tokens": nothing, "place": nothing, "candidate": self._item(example["item"], tok)}]
    if missing := [name for name in ("query", "positive") if not example.get(name)]:
      raise ConfigError(f"{missing[0]}: not there or empty; a row has query and positive, or an item of the catalogue")
    return [self._row(example["query"], tok, self._item(example["positive"], tok)) | {"candidate": nothing}]

  def encode_item(self, text: str, tok: Tokenizer) -> dict[str, np.ndarray]:
    """A sequence of which an item is the user, so that `predict` gives its vector; it is cut as items are."""
    item = self._item(text, tok)
    place = np.repeat([CLS, HISTORY, LAST], [1, len(item) - 2, 1]).astype(np.int32)
    return {"tokens": item, "place": place, "candidate": item}

  def _item(self, text: str, tok: Tokenizer) -> np.ndarray:
    return np.asarray([tok.cls_id, *tok.encode(text)[: self.item_len - 2], tok.sep_id], np.int32)

  def _row(self, query: str, tok: Tokenizer, item: np.ndarray) -> dict[str, np.ndarray]:
    history = np.asarray(tok.encode(query), np.int32)
    place = np.repeat([CLS, LAST, ITEM, HISTORY], [1, 1, len(item), len(history)]).astype(np.int32)
    return {"tokens": np.concatenate([np.asarray([tok.cls_id, tok.sep_id], np.int32), item, history]), "place": place}

  def row_cost(self, lengths_N):
    return lengths_N + self.num_negatives * self.item_len

  def corrupt(self, rows, noise, tok, width):
    tokens_RT, place_RT = in_order(rows, "tokens", "place")
    R, T = tokens_RT.shape
    row_R1, column_RT = np.arange(R)[:, None], np.broadcast_to(np.arange(T), (R, T))
    is_item_RT, is_user_RT = place_RT == ITEM, place_RT < ITEM
    first_R, size_R = is_user_RT.sum(1), (place_RT < NOWHERE).sum(1)
    segment_RT = np.where(is_item_RT, POSITIVE + 1, np.where(is_user_RT, USER + 1, 0))
    position_RT = np.where(is_item_RT, column_RT - first_R[:, None], np.where(is_user_RT, column_RT, 0))
    weights = []
    for i in range(self.num_negatives):
      drawn_RT = rows[f"negative_{i}"]
      there_RT = drawn_RT >= 0
      row, column = np.nonzero(there_RT)
      to = size_R[row] + column
      tokens_RT[row, to], segment_RT[row, to], position_RT[row, to] = drawn_RT[row, column], POSITIVE + 2 + i, column
      size_R = size_R + there_RT.sum(1)
      # The positive, moved to the front of its row, with nothing behind it.
      positive_RT = np.where(is_item_RT, tokens_RT, -1)[row_R1, (column_RT + first_R[:, None]) % T]
      weights.append((positive_RT != drawn_RT).any(1) & there_RT.any(1) & is_item_RT.any(1))
    negative_RN = np.stack(weights, axis=1)
    return {
      "tokens": tokens_RT,
      "segment_ids": segment_RT.astype(np.int32),
      "positions": position_RT.astype(np.int32),
      "weights": negative_RN.any(1).astype(np.float32),
      "positive_weights": is_item_RT.any(1).astype(np.float32),
      "negative_weights": negative_RN.astype(np.float32),
    }

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    score_BK = forward.head(self._states(forward, batch, rng), batch, rng)
    positive_B1, negative_BN, weights_BN = score_BK[:, :1], score_BK[:, 1:], batch["negative_weights"]
    count_B, margin_BN = weights_BN.sum(1).clip(1), positive_B1 - negative_BN
    mean = lambda x_BN: (weights_BN * x_BN).sum(1) / count_B
    if self.kind == "bpr":
      loss_B = -mean(forward.log_sigmoid(margin_BN))
    else:
      apart_BN, own_B = forward.log_sigmoid(-negative_BN), forward.log_sigmoid(positive_B1)[:, 0]
      loss_B = -(own_B + (weights_BN * apart_BN).sum(1)) / (1 + count_B)
    found = {"loss": loss_B, "accuracy": mean((margin_BN > 0) + 0.5 * (margin_BN == 0))}
    return {name: (value_B * batch["weights"]).sum() for name, value_B in found.items()}

  def predict(self, forward, batch):
    """user [B, D] fp32: the state of the first segment, of which the direction counts."""
    return {"user": self._states(forward, batch, None)[:, USER].astype("float32"), "weights": batch["positive_weights"]}

  def _states(self, forward, batch, rng):
    return forward.pooled_segments(batch, rng, self.pooling, self.num_segments)
