"""What a task asks of a head, without the module that it becomes. No jax: data workers import this."""

import dataclasses

OVER_VOCABULARY = ("lm", "mlm")  # kinds of heads, which are named alike


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """kind: lm, mlm, classifier, chooser, pair, tagger, span or similarity.

  num_outputs: of a classifier, pair or tagger its classes, of a chooser 1, a choice's score, of a span 2, its start and end, of
  a similarity 1 with a bias; lm and mlm take the vocabulary's.
  """

  kind: str
  num_outputs: int = 0
