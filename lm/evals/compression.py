"""What general-purpose compressors reach on the same split, primed with the training text: bits per byte to beat."""

import bz2
import dataclasses
import lzma

from lm.config import ConfigError
from lm.evals.evaluator import Evaluator

SEPARATOR = b"\n"  # one byte after every document, as the model predicts one end token


@dataclasses.dataclass
class Compression(Evaluator):
  """Yields baseline/xz_bits_per_byte and baseline/bz2_bits_per_byte: 8 (len(c(train + split)) - len(c(train))) / len(split).

  xz with preset 9e sees all of the training text; bz2's block holds 900 kB, so it is shown and no bar. Computed once.
  """

  def __post_init__(self):
    super().__post_init__()
    source = self.run.source(self.stream, self.split)
    if len(source) and "text" not in source[0]:
      raise ConfigError(f"evaluator 'compression': compresses text; an example of {self.stream!r} has {', '.join(source[0])}")
    self._found: dict[str, float] = {}

  def __call__(self, params):
    if not self._found:
      train, split = self._text("train"), self._text(self.split)
      compressors = {"xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME), "bz2": bz2.compress}
      for name, compress in compressors.items():
        extra = len(compress(train + split)) - len(compress(train))
        self._found[f"baseline/{name}_bits_per_byte"] = 8 * extra / len(split)
    yield from self._found.items()

  def _text(self, split: str) -> bytes:
    source = self.run.source(self.stream, split)
    return b"".join(source[i]["text"].encode() + SEPARATOR for i in range(len(source)))
