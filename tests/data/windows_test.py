"""Windows over a text: together they read all of it, and every piece is of the one where it has most context."""

import pytest

from lm.data.windows import Window, split


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 23])
def test_every_piece_is_of_the_window_with_most_context(length, size):
  for stride in range(1, size + 1):
    found = split(length, size, stride)
    assert all(window.stop - window.start == min(size, length) for window in found)
    assert all(0 < b.start - a.start <= stride for a, b in zip(found, found[1:], strict=False))
    assert [i for window in found for i in range(window.first, window.end)] == list(range(length))
    context = lambda window, i: min(i - window.start, window.stop - 1 - i) if window.start <= i < window.stop else -1
    for window in found:
      for i in range(window.first, window.end):
        assert context(window, i) == max(context(other, i) for other in found)


def test_a_short_text_is_one_window_and_the_last_one_ends_with_the_text():
  assert split(4, 6, 3) == [Window(0, 4, 0, 4)]
  assert split(10, 6, 3) == [Window(0, 6, 0, 5), Window(3, 9, 5, 7), Window(4, 10, 7, 10)]
