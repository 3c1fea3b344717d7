"""Which pieces of which sequences make a row: decided once, from lengths alone.

Rows are stored as arrays of pieces, so that any row can be read without those before it, and an epoch is a permutation.
"""

import bisect
import dataclasses

import numpy as np

WINDOW = 1 << 16  # sequences that are packed together


@dataclasses.dataclass(frozen=True)
class Plan:
  """Row r holds pieces row_offsets[r] to row_offsets[r + 1]; piece p is tokens start[p] to stop[p] of sequence[p]."""

  row_offsets: np.ndarray
  sequence: np.ndarray
  start: np.ndarray
  stop: np.ndarray
  num_split: int = 0  # sequences longer than a row, spread over several
  num_truncated: int = 0  # sequences longer than a row, cut to it

  @property
  def num_rows(self) -> int:
    """Rows of one epoch."""
    return len(self.row_offsets) - 1

  @property
  def row_lengths(self) -> np.ndarray:
    """Tokens of each row, [R]."""
    return self.row_sums(self.stop - self.start)

  def row_sums(self, per_piece: np.ndarray) -> np.ndarray:
    """Adds a value per piece over the pieces of each row, [R]."""
    totals = np.concatenate([[0], np.cumsum(per_piece)])
    return totals[self.row_offsets[1:]] - totals[self.row_offsets[:-1]]


def pad(lengths: np.ndarray, capacity: int) -> Plan:
  """One sequence per row, cut to the capacity; empty sequences are left out."""
  kept = np.flatnonzero(lengths > 0)
  return Plan(
    row_offsets=np.arange(len(kept) + 1),
    sequence=kept,
    start=np.zeros(len(kept), np.int64),
    stop=np.minimum(lengths[kept], capacity),
    num_truncated=int(np.sum(lengths > capacity)),
  )


def pack(lengths: np.ndarray, capacity: int, seed: int) -> Plan:
  """Packs sequences into rows: windows over a seed-fixed order, each packed best fit, longest pieces first.

  Only sequences longer than a row are split, into full rows and a rest. Lengths [5, 3, 9] and capacity 8 give rows
  [sequence 2, 0 to 8], [sequence 0, 0 to 5; sequence 1, 0 to 3], [sequence 2, 8 to 9].
  """
  order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
  rows: list[list[tuple[int, int, int]]] = []
  for first in range(0, len(order), WINDOW):
    window = order[first : first + WINDOW]
    pieces = [
      (i, start, min(start + capacity, n))
      for i, n in zip(window.tolist(), lengths[window].tolist(), strict=True)
      for start in range(0, n, capacity)
    ]
    rows += _best_fit(pieces, capacity)
  flat = np.array([piece for row in rows for piece in row], np.int64).reshape(-1, 3)
  return Plan(
    row_offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
    sequence=flat[:, 0],
    start=flat[:, 1],
    stop=flat[:, 2],
    num_split=int(np.sum(lengths > capacity)),
  )


def _best_fit(pieces: list[tuple[int, int, int]], capacity: int) -> list[list[tuple[int, int, int]]]:
  """Best fit decreasing: each piece goes into the fullest row that still takes it."""
  rows: list[list[tuple[int, int, int]]] = []
  by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by free tokens
  rooms: list[int] = []  # the sizes of room that some row has, rising
  for piece in sorted(pieces, key=lambda p: p[1] - p[2]):  # stable: equal lengths keep the seed-fixed order
    size = piece[2] - piece[1]
    at = bisect.bisect_left(rooms, size)
    if at == len(rooms):
      row, room = len(rows), capacity
      rows.append([])
    else:
      room = rooms[at]
      row = by_room[room].pop()
      if not by_room[room]:
        rooms.pop(at)
    rows[row].append(piece)
    left = room - size
    if left:
      if not by_room[left]:
        bisect.insort(rooms, left)
      by_room[left].append(row)
  return rows
