"""Documents that were there before, word for word: case, width of characters (NFKC) and kind of blanks do not count."""

import dataclasses
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from lm.data.filters.filter import EXAMPLES, Batch


@dataclasses.dataclass(frozen=True)
class Exact:
  """The first of equal documents stays. Memory: about 100 bytes a document."""

  as_written: bool = False  # only documents whose every character is the same are equal

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """Notes: examples, the numbers of [document, the one it equals]."""
    first: dict[bytes, int] = {}
    examples = notes.setdefault("examples", [])
    for batch in batches:
      kept = []
      for document in batch:
        same = first.setdefault(self._digest(document.text), document.number)
        if same == document.number:
          kept.append(document)
        elif len(examples) < EXAMPLES:
          examples.append([document.number, same])
      yield kept

  def _digest(self, text: str) -> bytes:
    if not self.as_written:
      text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
