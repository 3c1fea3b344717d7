"""What a task asks of a head, without the module that it becomes. No jax: data workers import this."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """kind: lm, mlm, classifier or pair. num_outputs: classes of the last two; the vocabulary heads take the model's."""

  kind: str
  num_outputs: int = 0
