"""A text that is longer than a row, in overlapping windows, as BERT reads paragraphs for SQuAD (Devlin et al. 2018)."""

from typing import NamedTuple


class Window(NamedTuple):
  """Pieces `start` to `stop` of a text. Those from `first` to `end` have no more context in any other window of it."""

  start: int
  stop: int
  first: int
  end: int


def split(length: int, size: int, stride: int) -> list[Window]:
  """Windows of at most `size` pieces, `stride` apart, the last one at the text's end; every piece is of one of them.

  A piece is of the window in which fewer of the pieces around it are cut off: of that with the larger of the smaller numbers
  before and behind it, of equal ones the first. `split(10, 6, 3)` reads 0 to 6, 3 to 9 and 4 to 10, of which are 0 to 5, 5 to
  7 and 7 to 10.
  """
  assert 1 <= stride <= size, f"windows of {size} that are {stride} apart leave pieces out"
  if length <= size:
    return [Window(0, length, 0, length)]
  starts = [*range(0, length - size, stride), length - size]
  # Between neighbours of one size: the last piece with as many behind it in the one as before it in the other.
  ends = [(start + size - 1 + after) // 2 + 1 for start, after in zip(starts, starts[1:], strict=False)]
  return [
    Window(start, start + size, first, end) for start, first, end in zip(starts, [0, *ends], [*ends, length], strict=True)
  ]
