"""The contract of a filter: a stream of documents in, a stream of those that stay out, in their order."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

EXAMPLES = 5  # that a report shows


class Document(NamedTuple):
  """A text and its number in the source."""

  number: int
  text: str


Batch = list[Document]


class Filter(Protocol):
  """A frozen dataclass whose fields are its options. It keeps no state: what it remembers is of one call of `apply`.

  Memory may grow with hashes of documents, not with their text.
  """

  def apply(self, batches: Iterable[Batch], notes: dict[str, Any]) -> Iterator[Batch]:
    """The documents that stay, batch by batch. notes: what the report says beside the counts; complete at the end."""
    ...
