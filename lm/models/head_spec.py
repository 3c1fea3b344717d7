"""What a task asks of a head, without the module that it becomes. No jax: data workers import this."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """kind: lm, mlm, classifier, pair or tagger. num_outputs: classes of the last three; the others take the vocabulary's."""

  kind: str
  num_outputs: int = 0
