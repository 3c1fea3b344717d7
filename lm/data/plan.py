"""Which pieces of which sequences make a row: decided once, from lengths alone.

Rows are stored as arrays of pieces, so that any row can be read without those before it, and an epoch is a permutation.
"""

import bisect
import dataclasses
from collections.abc import Callable

import numpy as np

from lm.config import ConfigError

WINDOW = 1 << 16  # sequences that are packed together

RowCost = Callable[[np.ndarray], np.ndarray]  # tokens of pieces -> the room they take in a row; never falls


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


def pad(lengths: np.ndarray, capacity: int, row_cost: RowCost = np.asarray) -> Plan:
  """One sequence per row, cut to what fits the capacity; empty sequences are left out.

  Lengths [3, 0, 9] and capacity 8 give rows [sequence 0, 0 to 3], [sequence 2, 0 to 8].
  """
  longest = longest_piece(capacity, row_cost)
  kept = np.flatnonzero(lengths > 0)
  return Plan(
    row_offsets=np.arange(len(kept) + 1),
    sequence=kept,
    start=np.zeros(len(kept), np.int64),
    stop=np.minimum(lengths[kept], longest),
    num_truncated=int(np.sum(lengths > longest)),
  )


def pack(lengths: np.ndarray, capacity: int, seed: int, row_cost: RowCost = np.asarray) -> Plan:
  """Packs sequences into rows: windows over a seed-fixed order, each packed best fit, largest pieces first.

  Only sequences longer than a row are split, into full rows and a rest. Lengths [5, 3, 9] and capacity 8 give rows
  [sequence 2, 0 to 8], [sequence 0, 0 to 5; sequence 1, 0 to 3], [sequence 2, 8 to 9].
  """
  longest = longest_piece(capacity, row_cost)
  order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
  parts = [np.zeros((4, 0), np.int64)]  # row, sequence, start, stop
  num_rows = 0
  for first in range(0, len(order), WINDOW):
    window = order[first : first + WINDOW]
    num_pieces = -(-lengths[window] // longest)
    sequence = np.repeat(window, num_pieces)
    start = longest * (np.arange(len(sequence)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces))
    stop = np.minimum(start + longest, lengths[sequence])
    cost = row_cost(stop - start)
    falling = np.argsort(-cost, kind="stable")  # equal costs keep the seed-fixed order
    row = _best_fit(cost[falling].tolist(), capacity)
    by_row = np.argsort(row, kind="stable")
    pieces = falling[by_row]
    parts.append(np.stack([row[by_row] + num_rows, sequence[pieces], start[pieces], stop[pieces]]))
    num_rows += int(row.max(initial=-1)) + 1
  row, sequence, start, stop = np.concatenate(parts, axis=1)
  return Plan(
    row_offsets=np.searchsorted(row, np.arange(num_rows + 1)),
    sequence=sequence,
    start=start,
    stop=stop,
    num_split=int(np.sum(lengths > longest)),
  )


def longest_piece(capacity: int, row_cost: RowCost) -> int:
  """Tokens of the longest piece that fits a row."""
  costs = row_cost(np.arange(capacity + 1))
  assert (np.diff(costs) >= 0).all(), "row_cost never falls"
  longest = int(np.searchsorted(costs, capacity, side="right")) - 1
  if longest < 1:
    raise ConfigError(f"config.seq_len={capacity}: one token of this task takes {costs[1]} positions")
  return longest


def _best_fit(sizes: list[int], capacity: int) -> np.ndarray:
  """The row of each piece: the fullest one that still takes it, or a new one. Sizes fall."""
  by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by free room
  rooms: list[int] = []  # the sizes of room that some row has, rising
  row_of_piece = np.empty(len(sizes), np.int64)
  num_rows = 0
  for piece, size in enumerate(sizes):
    at = bisect.bisect_left(rooms, size)
    if at == len(rooms):
      row, room = num_rows, capacity
      num_rows += 1
    else:
      room = rooms[at]
      row = by_room[room].pop()
      if not by_room[room]:
        rooms.pop(at)
    row_of_piece[piece] = row
    left = room - size
    if left:
      if not by_room[left]:
        bisect.insort(rooms, left)
      by_room[left].append(row)
  return row_of_piece
