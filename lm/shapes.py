"""The alphabet of shapes, what a batch is, and the logical names of parameter dims. No jax: data workers import this.

B batch, T query length, S key length, D model, H heads, K kv heads, G heads per kv head, C head channels, F hidden,
V vocab, E experts, L layers, N classes, P predicted positions. A tensor's name ends in its dims (`q_BTHC`), einsum uses
the same letters. *Axis* means mesh, *dim* means tensor.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# A batch is {"inputs": {...}, <task key>: {...}, ...}. `inputs` is what the model reads, the others are one task's labels
# and weights. Rows of other tasks are zero everywhere, and a zero weight means "not counted".
#   inputs/tokens       [B, T] int32
#                       below 0 where a fine-tuning method gives the embedding, -1 its first one (lm.data.reserve)
#   inputs/segment_ids  [B, T] int32, 0 on padding; positions attend only within one segment
#   inputs/positions    [B, T] int32, counted from the start of the segment
#   inputs/row          [B]    int32, the row's number in the global batch: keys the dropout noise
#   inputs/token_types  [B, T] int32, 1 on the second text of a pair; only in runs with pairs
#   inputs/prefix       [B, T] int32, 1 where an autoregressive model reads in both directions; only in runs with prefixes
#   <task key>/stream   [B]    int32, which of the streams that share the task the row is of; only where several do
Batch = Mapping[str, Mapping[str, Any]]
INPUTS = "inputs"
INPUT_FIELDS = ("tokens", "segment_ids", "positions", "row", "token_types", "prefix")


@dataclasses.dataclass(frozen=True)
class Field:
  """One array a task's rows have, and the stored column it is read from.

  dims: ("T",) for one value per token, () for one value per sequence (only tasks that do not pack).
  dtype: numpy name of the array in the batch. pad: the value where there is no token.
  column: the column of the store, the field's own name if empty. shift: how many positions later in the document it is
  read: the causal task's targets are the column `tokens` with shift 1, so nothing is stored twice and a document that is
  split over rows loses no prediction.
  partner: n reads it from the n-th other sequence that is drawn, anew in every epoch, among those that have something in the
  column; 0 from its own (dims ("T",), only tasks that do not pack). A sequence without tokens takes no row: it is only drawn.
  """

  dims: tuple[str, ...]
  dtype: str = "int32"
  pad: int = 0
  column: str = ""
  shift: int = 0
  partner: int = 0


def kernel_dims(axes: Sequence[str | None]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
  """Splits a kernel's dims into (stacked, input, output) by their logical names.

  Every kernel maps the model dim ("embed") to something else or back, so "embed" is one side and all others are the other.
  In front of both stands what there is a matrix for each of: layers, experts. A router's experts stand behind: its output.

  >>> kernel_dims(("layers", "embed", "heads", "channels"))
  ((0,), (1,), (2, 3))
  >>> kernel_dims(("layers", "heads", "channels", "embed"))
  ((0,), (1, 2), (3,))
  >>> kernel_dims(("layers", "experts", "embed", "mlp"))
  ((0, 1), (2,), (3,))
  >>> kernel_dims(("layers", "embed", "experts"))
  ((0,), (1,), (2,))
  """
  stacked = tuple(range(next(i for i, name in enumerate(axes) if name not in ("layers", "experts"))))
  rest = range(len(stacked), len(axes))
  if axes[rest[0]] == "embed":
    return stacked, (rest[0],), tuple(rest[1:])
  if axes[rest[-1]] == "embed":
    return stacked, tuple(rest[:-1]), (rest[-1],)
  raise AssertionError(f"a kernel has 'embed' on one side, got {axes}")


def depth(name: str, num_layers: int) -> np.ndarray:
  """How far below the top a model's parameter stands.

  Heads and the norm before them have 0, layer l of a stacked leaf L - l, as a vector [L], what the blocks read L + 1.

  >>> depth("backbone/blocks/ffn/up/kernel", 3).tolist()
  [3, 2, 1]
  """
  if name.startswith("backbone/blocks/"):
    return np.arange(num_layers, 0, -1)
  return np.asarray(0 if name.startswith(("head_", "backbone/final_norm/")) else num_layers + 1)


def split_dims(
  dims: Sequence[str | None], shape: Sequence[int], rules: Sequence[tuple[str, Sequence[str] | None]], sizes: Mapping[str, int]
) -> list[tuple[str, ...]]:
  """Mesh axes that each dim of an array is split over. rules: dim -> axes, the first of a dim counts; sizes: of the axes.

  An axis splits one dim of an array: that of the earlier rule. Of a dim's axes those of size 1 are left out, and all from the
  first on that does not divide what is left of the dim.

  >>> rules = (("experts", ("expert",)), ("embed", ("fsdp", "expert")))
  >>> split_dims(("experts", "embed"), (8, 6), rules, {"fsdp": 2, "expert": 4})
  [('expert',), ('fsdp',)]
  >>> split_dims(("embed", None), (6, 8), rules, {"fsdp": 2, "expert": 4})
  [('fsdp',), ()]
  """
  found: dict[str, tuple[str, ...]] = {}
  for dim, axes in rules:
    if dim not in dims or dim in found:
      continue
    left, kept = shape[dims.index(dim)], []
    used = {axis for others in found.values() for axis in others}
    for axis in (axis for axis in axes or () if sizes.get(axis, 1) > 1 and axis not in used):
      if left % sizes[axis]:
        break
      left //= sizes[axis]
      kept.append(axis)
    found[dim] = tuple(kept)
  return [found.get(dim, ()) if dim else () for dim in dims]
