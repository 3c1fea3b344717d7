"""What a task asks of a head, without the module that it becomes. No jax: data workers import this."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """kind: lm, mlm, classifier, pair, tagger or span. num_outputs: of all but the first two, which take the vocabulary's."""

  kind: str
  num_outputs: int = 0
