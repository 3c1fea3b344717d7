"""UL2's mixture of denoisers (Tay et al. 2022): one of seven span corruptions for each document, its kind said in front."""

import dataclasses

from lm.data import rewrite
from lm.tasks.span_corruption import Denoiser, SpanCorruption

R, S, X = range(3)
MODES = (("[R]", "[NLU]"), ("[S]", "[S2S]"), ("[X]", "[NLG]"))  # the paper's names and those of the released models
DENOISERS = (
  Denoiser(0.15, 3, R),
  Denoiser(0.15, 8, R),
  Denoiser(0.25, float("inf"), S),  # one span, which then is the document's end
  Denoiser(0.5, 3, X),
  Denoiser(0.5, 8, X),
  Denoiser(0.15, 64, X),
  Denoiser(0.5, 64, X),
)


@dataclasses.dataclass(frozen=True)
class Ul2(SpanCorruption):
  """Regular (R), sequential (S) and extreme (X) denoising, drawn anew in every epoch, all seven alike often.

  As span corruption, with the mode's symbol behind bos: S of [bos a b c d eos] is [bos [S] a b c <0>, <0> d eos]. The plan
  is older than the draw, so a row has room for the denoiser that adds the most sentinels: on wikitext-2 rows of 512 hold 75%
  of tokens of the text, and are 82% full with the symbols (span corruption alone: 91% and 99.9%).
  """

  span_rate: float = dataclasses.field(default=0.15, init=False)  # not read: the mixture has rates of its own
  span_mean: float = dataclasses.field(default=3.0, init=False)  # [tokens] not read, as above
  mode_ids: tuple[int, ...] = ()  # ids of R, S and X; unset takes [R], [S], [X] or [NLU], [S2S], [NLG] of the vocabulary

  @property
  def denoisers(self) -> tuple[Denoiser, ...]:
    return DENOISERS

  def check(self, tok, seq_len):
    super().check(tok, seq_len)
    rewrite.check_reserved(self._modes(tok), len(MODES), "task.mode_ids", "[R], [S] and [X]")

  def _modes(self, tok) -> tuple[int, ...]:
    return rewrite.reserved(tok, "task.mode_ids", self.mode_ids, MODES)
