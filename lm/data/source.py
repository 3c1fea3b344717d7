"""The contract of a source: random access to raw examples of one split, and a fingerprint of all of them."""

from typing import Any, Protocol

SPLITS = ("train", "validation", "test")


class Source(Protocol):
  """A frozen dataclass with a field `split`, one of SPLITS.

  A source of labelled examples also has `labels`, the label set of its training split as a tuple of names. One whose
  `pairs` is true gives {"text", "text_pair"}. What `describe()` returns, if it is there, is said when a run starts.
  `locate(index)`, if it is there, says where an example is from: {"file": "reviews.csv", "line": 3}.
  """

  @property
  def split(self) -> str: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """One example, e.g. {"text": "...", "label": "json"}."""
    ...

  def fingerprint(self) -> str:
    """Changes whenever any example does. A run asks several times; a source that is large computes it once."""
    ...
