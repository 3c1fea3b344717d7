"""Positions in front of every sequence for embeddings that a fine-tuning method trains (prompt tuning, Lester et al. 2021).

They are put into finished rows, so that tasks prepare, corrupt and label text without them. A negative token, -1, -2, ..., says
which embedding a position takes.
"""

from collections.abc import Mapping

import numpy as np

from lm.shapes import INPUT_FIELDS


def virtual_ids(num: int) -> np.ndarray:
  """The tokens of `num` reserved positions: 3 -> [-1 -2 -3]."""
  return -1 - np.arange(num, dtype=np.int32)


def columns(segment_ids_RT: np.ndarray, num: int) -> np.ndarray:
  """Where each position goes when `num` are put in front of every segment: [[1 1 2 0]], 2 -> [[2 3 6 7]]."""
  return np.arange(segment_ids_RT.shape[1])[None, :] + num * np.cumsum(_begins(segment_ids_RT), axis=1)


def reserve(arrays: Mapping[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
  """Rows with `num` positions in front of every segment, for which they have room at their end.

  Tokens [5 6 7 0 0 0 0] of segments [1 1 2 0 0 0 0] with weights [1 1 1 0 0 0 0] become, with 2, tokens [-1 -2 5 6 -1 -2 7] of
  segments [1 1 1 1 2 2 2], positions [0 1 2 3 0 1 2] and weights [0 0 1 1 0 0 1]: nothing is predicted from a reserved
  position, and nothing predicts its token.

  Args:
    arrays: [R, T] and [R, P] with P < T; of [R, T], what the model reads of a segment's first token (token types, whether it
      is of a prefix) counts for the positions in front too, all else is 0 there. Names that end in "_positions" hold columns.
  """
  ids_RT = arrays["segment_ids"]
  to_RT, T = columns(ids_RT, num), ids_RT.shape[1]
  row, old = np.nonzero(ids_RT)
  new = to_RT[row, old]
  assert new.max(initial=0) < T, f"rows of {T} have no room for {num} reserved positions per segment"
  first_row, first = np.nonzero(_begins(ids_RT))
  place = np.arange(num)[None, :]
  front = first_row[:, None], (to_RT[first_row, first] - num)[:, None] + place

  def move(name: str, values: np.ndarray) -> np.ndarray:
    if name.endswith("_positions"):
      return np.take_along_axis(to_RT, values, axis=1).astype(values.dtype)
    if values.shape[1:2] != (T,):
      return values
    moved = np.zeros_like(values)
    moved[row, new] = values[row, old]
    if name in INPUT_FIELDS:
      moved[front] = values[first_row, first][:, None]
    return moved

  found = {name: move(name, values) for name, values in arrays.items()}
  found["tokens"][front] = virtual_ids(num)[None, :]
  found["positions"][row, new] += num
  found["positions"][front] = place
  return found


def _begins(ids_RT: np.ndarray) -> np.ndarray:
  """Where a segment has its first token, bool."""
  before_RT = np.pad(ids_RT, ((0, 0), (1, 0)))[:, :-1]
  return (ids_RT > 0) & (ids_RT != before_RT)
