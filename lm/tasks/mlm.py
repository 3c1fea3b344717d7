"""Masked language modelling (Devlin et al. 2018), with masks drawn anew in every epoch (RoBERTa)."""

import dataclasses

import numpy as np

from lm.data import corrupt
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task

# Spans of whole words that each unit is hidden in, by length; None: single tokens.
UNITS = {"token": None, "word": corrupt.WORDS, "span": corrupt.SPANS, "ngram": corrupt.NGRAMS}


@dataclasses.dataclass(frozen=True)
class Mlm(Task):
  """Hides `mask_rate` of each document's tokens and predicts them: single ones, or those of whole words.

  `prepare({"text": "abc"})` stores [cls a b c sep]; `corrupt` may give tokens [cls a mask c sep], masked_positions [2],
  labels [b], weights [1], all padded to the same number of predicted positions P.

  unit: `word` is BERT's whole-word masking, `span` SpanBERT's (1 to 10 words, 3.8 in the mean; all tokens of a span show the
  mask, or all a random token, or all their own), `ngram` ALBERT's (1 to 3 words). Of whole words no more tokens are hidden
  than of single ones, and as many as there are words to fit. Words are what `Tokenizer.starts_word` says, where a Chinese
  character is one; with separator="/" the text "使用/语言/模型" has three of two characters.
  """

  mask_rate: float = 0.15  # share of positions to predict
  mask_share: float = 0.8  # of them, how many show the mask token
  random_share: float = 0.1  # of them, how many show a random token; the rest show the token itself
  unit: str = "token"  # what is hidden as one: token, word, span (of words) or ngram
  separator: str = ""  # what stands between words in segmented texts, taken out; unset, the tokenizer knows

  causal = False
  needs_mask = True
  prepare_fields = ("separator",)
  head = "mlm"

  def __post_init__(self):
    if not 0 < self.mask_rate < 1:
      raise ValueError(f"task.mask_rate={self.mask_rate}: must be between 0 and 1")
    if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
      raise ValueError(
        f"task.mask_share={self.mask_share}, task.random_share={self.random_share}: shares of one whole, their sum at most 1"
      )
    if self.unit not in UNITS:
      raise ValueError(f"task.unit={self.unit!r}: accepted are {', '.join(UNITS)}")
    if self.separator and self.unit == "token":
      raise ValueError(f"task.separator={self.separator!r}: has no effect on single tokens; set task.unit or leave it unset")

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("mlm")

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",))} | ({"starts": Field(("T",), "bool")} if self.separator else {})

  def prepare(self, example, tok):
    if not self.separator:
      return [{"tokens": np.asarray([tok.cls_id, *tok.encode(example["text"]), tok.sep_id], np.int32)}]
    words = [word for word in example["text"].split(self.separator) if word]
    latin = lambda character: character.isascii() and character.isalnum()
    for i in range(len(words) - 1, 0, -1):
      if latin(words[i][0]) and latin(words[i - 1][-1]):  # "is 2024", which would be one word without a space
        words[i] = f" {words[i]}"
    ids, spans = tok.encode_with_offsets("".join(words))
    # The word of each token by its last character; the bytes of one character all have that one.
    begins = np.cumsum([0, *map(len, words[:-1])])
    word = np.searchsorted(begins, spans[:, 1] - 1, side="right")
    starts = np.diff(word, prepend=-1) != 0
    return [{"tokens": np.asarray([tok.cls_id, *ids, tok.sep_id], np.int32), "starts": np.asarray([1, *starts, 1], np.uint8)}]

  def target_counts(self, lengths_N):
    return corrupt.num_chosen(lengths_N, self.mask_rate)

  def corrupt(self, rows, noise, tok, width):
    tokens_RT = rows["tokens"]
    eligible_RT = (rows["segment_ids"] > 0) & ~np.isin(tokens_RT, tok.special_ids)
    lengths, origin_RT = UNITS[self.unit], None
    if lengths is None:
      chosen_RT = corrupt.choose(eligible_RT, rows["segment_ids"], self.mask_rate, noise)
    else:
      starts_RT = rows["starts"] if self.separator else tok.starts_word[tokens_RT]
      chosen_RT, origin_RT = corrupt.choose_words(eligible_RT, starts_RT, rows["segment_ids"], self.mask_rate, noise, lengths)
    shares = self.mask_share, self.random_share
    masked_RT = corrupt.mask_tokens(tokens_RT, chosen_RT, noise, tok, shares, origin_RT if self.unit == "span" else None)
    positions_RP, weights_RP, labels_RP = corrupt.gather(chosen_RT, width, tokens_RT)
    return {"tokens": masked_RT, "masked_positions": positions_RP, "labels": labels_RP, "weights": weights_RP}

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    h_BPD = forward.at(batch["masked_positions"], batch, rng)
    return forward.token_sums(h_BPD, batch["labels"], batch["weights"], batch)
