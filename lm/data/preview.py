"""What a run is about to read, for a person to look at: the source's counts, lengths in tokens, a few encoded examples."""

from typing import Any

import numpy as np

from lm.data.loader import SAMPLE, Rows, StreamData
from lm.data.source import Source
from lm.data.store import WINDOW, Store

PERCENTILES = (50, 90, 99)
NUM_EXAMPLES = 3
FIRST, LAST = 30, 10  # pieces of a long example that are shown


def preview(stream: StreamData, seq_len: int, source: Source | Any) -> str:
  """The lines on one stream; without lengths and examples where documents may be split, "" if there is nothing to say."""
  describe = getattr(source, "describe", None)
  lines = [describe()] if describe else []
  if not (stream.task.packed and stream.task.splits):
    rows, lengths = Rows(stream, seq_len, seed=0), stream.store.lengths
    lengths = lengths[lengths > 0]
    parts = [f"{percentile}% at most {np.percentile(lengths, percentile):.0f}" for percentile in PERCENTILES]
    lines.append(f"tokens per example: {', '.join(parts)}, the longest {lengths.max():,}; {_cut(rows, stream.store)}")
    lines += [*_emptied(rows), *_examples(rows)]
  return "\n".join(lines)


def _cut(rows: Rows, store: Store) -> str:
  """What becomes of long examples. Of one in several windows, each counts as an example above."""
  if WINDOW in store.columns:
    sizes = np.bincount(store.owner_N)
    return f"{np.sum(sizes > 1):,} of {len(sizes):,} stand in several windows of {rows.seq_len}"
  return f"{rows.plan.num_truncated / np.count_nonzero(store.lengths):.1%} cut to {rows.seq_len}"


def _emptied(rows: Rows) -> list[str]:
  """What to say where rows are cut so short that nothing in them counts; of SAMPLE among those that are full."""
  if not rows.plan.num_truncated:
    return []
  full = np.flatnonzero(rows.room == rows.room.max())
  sample = full[np.linspace(0, len(full) - 1, min(SAMPLE, len(full))).astype(np.int64)]
  weights = rows.read(sample, np.zeros_like(sample), rows.seq_len)["weights"].reshape(len(sample), -1)
  share = np.mean(~weights.any(1)) * len(full) / rows.plan.num_rows
  words = "warning: nothing that is learned is left in"
  return [f"  {words} {share:.1%} of the rows, which are cut; a larger config.seq_len keeps it"] if share else []


def _examples(rows: Rows) -> list[str]:
  """The first rows; of packed ones their first sequence."""
  count = min(NUM_EXAMPLES, rows.plan.num_rows)
  arrays = rows.read(np.arange(count), np.zeros(count, np.int64), rows.seq_len)
  lines = []
  for row in range(count):
    segment_ids, packed = arrays["segment_ids"][row], rows.stream.task.packed
    own = segment_ids == 1 if packed else segment_ids > 0
    ids = arrays["tokens"][row][own & (arrays["tokens"][row] >= 0)]  # no reserved position
    pieces = [rows.stream.tok.piece(int(i)) for i in ids]
    if len(pieces) > FIRST + LAST:
      pieces = [*pieces[:FIRST], "...", *pieces[-LAST:], f"({len(pieces)} tokens)"]
    target = rows.stream.task.show_target({name: values[row] for name, values in arrays.items()})
    lines.append(f"  {target}{': ' if target else ''}{' '.join(pieces)}")
  return lines
