"""Sentence pairs beside MLM, as BERT's pooler was pretrained: next sentence (Devlin et al. 2018) or order (Lan et al. 2020)."""

import dataclasses
import re

import numpy as np

from lm.data.corrupt import Noise
from lm.data.tokenizer import Tokenizer
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.mlm import Mlm

KINDS = ("nsp", "sop")
# Space belongs to the sentence behind it, so that nothing is lost.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)|(?<=[\u3002\uff01\uff1f])|(?<=\S)(?=\n)")


@dataclasses.dataclass(frozen=True)
class SentencePair(Mlm):
  """Hides tokens of a pair of texts, and asks [CLS] whether the second text follows the first.

  `prepare({"text": "Hi you. Bye."})` stores stretches of `pair_len` tokens [h i y o u . b y e .] with their sentence starts
  opens [1 0 0 0 0 0 1 0 0 0]. `corrupt` cuts each at a random sentence start: [cls h i y o u . sep b y e . sep], token types
  [0 0 0 0 0 0 0 0 1 1 1 1 1], pair_label 0. Half of the pairs have label 1: with `nsp` the second text is as many tokens of
  another stretch, from a sentence start; with `sop` the two are swapped. A stretch of one sentence has pair_weights 0. All
  tokenizers have one sep between the texts here; those of RoBERTa, which was not trained so, give no token types.
  """

  kind: str = "nsp"  # how half of the pairs are made wrong: nsp (second text from elsewhere) or sop (swapped)
  pair_len: int = 125  # [tokens] of both texts; with [CLS] and two [SEP] they fill rows of 128
  separator: str = dataclasses.field(default="", init=False)  # segmented texts are read by the mlm task only

  packed = False
  prepare_fields = ("pair_len",)
  coefficients = {"loss": 1.0, "pair_loss": 1.0}

  def __post_init__(self):
    super().__post_init__()
    if self.kind not in KINDS:
      raise ValueError(f"task.kind={self.kind!r}: accepted are {', '.join(KINDS)}")
    if self.pair_len < 2:
      raise ValueError(f"task.pair_len={self.pair_len}: must be 2 or more")

  @property
  def heads(self):
    return (*super().heads, ("classify", HeadSpec("pair", 2)))

  @property
  def fields(self) -> dict[str, Field]:
    own = {"tokens": Field(("T",)), "opens": Field(("T",), "bool")}
    others = {f"other_{name}": Field(("T",), "int32", -1, column=name, partner=1) for name in own}
    return own | (others if self.kind == "nsp" else {})

  def prepare(self, example, tok):
    sentences = [ids for text in _SENTENCE_END.split(example["text"]) if (ids := tok.encode(text))]
    tokens = np.asarray([i for ids in sentences for i in ids], np.int32)
    opens = np.zeros(len(tokens), np.uint8)
    opens[np.cumsum([0, *map(len, sentences)])[:-1]] = 1
    starts = range(0, len(tokens), self.pair_len)
    return [{"tokens": tokens[s : s + self.pair_len], "opens": opens[s : s + self.pair_len]} for s in starts]

  def row_cost(self, lengths_N):
    return lengths_N + 3

  def corrupt(self, rows, noise, tok, width):
    R, T = rows["tokens"].shape
    head_R, column_T = np.arange(R) * T, np.arange(T)[None, :]
    size_R = (rows["segment_ids"] > 0).sum(1)
    cuts_RT = rows["opens"] & (column_T > 0) & (column_T < size_R[:, None])
    cut_R = np.where(cuts_RT, noise.uniform(9), 2.0).argmin(1)
    paired_R = cuts_RT.any(1)
    wrong_R = paired_R & (noise.uniform(10, head_R) < 0.5)
    begin_R, length_R = np.stack([0 * cut_R, cut_R]), np.stack([cut_R, size_R - cut_R])  # of both texts
    length_R = np.where(paired_R, length_R, np.stack([size_R, 0 * size_R]))
    texts_RT = rows["tokens"]
    if self.kind == "sop":
      begin_R, length_R = (np.where(wrong_R, x[::-1], x) for x in (begin_R, length_R))
    else:
      texts_RT = np.concatenate([texts_RT, rows["other_tokens"]], axis=1)
      other_R, available_R = _starts(rows["other_opens"], length_R[1])
      begin_R[1] = np.where(wrong_R, T + other_R, begin_R[1])
      length_R[1] = np.where(wrong_R, np.minimum(length_R[1], available_R), length_R[1])
    found = _join(texts_RT, begin_R, length_R, tok, rows["segment_ids"])
    sequence_RT, place_RT = np.broadcast_to(noise.sequence_RT[:, :1], (R, T)), np.broadcast_to(column_T, (R, T))
    masked = super().corrupt(found, Noise(noise.seed, noise.epoch_R, sequence_RT, place_RT), tok, width)
    return found | masked | {"pair_label": wrong_R.astype(np.int32), "pair_weights": paired_R.astype(np.float32)}

  def denominators(self, batch):
    pairs = batch["pair_weights"].sum()
    return super().denominators(batch) | {"pair_loss": pairs, "pair_accuracy": pairs}

  def loss(self, forward, batch, rng):
    first_BD = forward.pooled(batch, rng, "first")
    reader = forward.for_head("classify")
    pairs = reader.token_sums(first_BD, batch["pair_label"], batch["pair_weights"], batch, rng)
    return super().loss(forward, batch, rng) | {f"pair_{name}": value for name, value in pairs.items()}


def _starts(opens_RT: np.ndarray, wanted_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each text the last sentence start that leaves `wanted` tokens, else the first one, else 0, and what it leaves.

  Opens are -1 behind the text: [1 0 0 1 0 -1], wanted 2 -> (3, 2); wanted 4 -> (0, 5).
  """
  column_T, size_R = np.arange(opens_RT.shape[1])[None, :], (opens_RT >= 0).sum(1)
  fits_RT = (opens_RT == 1) & (column_T <= (size_R - wanted_R)[:, None])
  last_R = np.where(fits_RT, column_T, -1).max(1)
  start_R = np.where(last_R >= 0, last_R, (opens_RT == 1).argmax(1))
  return start_R, size_R - start_R


def _join(
  texts_RS: np.ndarray, begin: np.ndarray, length: np.ndarray, tok: Tokenizer, ids_RT: np.ndarray
) -> dict[str, np.ndarray]:
  """Rows [cls a sep b sep] of texts that stand from begin [2, R], of length [2, R]; nothing where a row of `ids` is empty."""
  R, T = ids_RT.shape
  column_RT = np.broadcast_to(np.arange(T)[None, :], (R, T))
  a, b, (begin_a, begin_b) = length[0][:, None], length[1][:, None], begin[:, :, None]
  second = a + 2
  in_a, in_b = (column_RT >= 1) & (column_RT <= a), (column_RT >= second) & (column_RT < second + b)
  source = np.where(in_a, column_RT - 1 + begin_a, np.where(in_b, column_RT - second + begin_b, 0))
  tokens_RT = np.where(in_a | in_b, np.take_along_axis(texts_RS, source, axis=1), tok.sep_id)
  tokens_RT[:, 0] = tok.cls_id
  real_RT = (column_RT <= second + b) & (ids_RT[:, :1] > 0)
  return {
    "tokens": np.where(real_RT, tokens_RT, 0).astype(np.int32),
    "segment_ids": real_RT.astype(np.int32),
    "positions": np.where(real_RT, column_RT, 0).astype(np.int32),
    "token_types": (real_RT & (column_RT >= second) & (tok.pair_separators == 1)).astype(np.int32),
  }
