"""Batches as a pure function of (seed, step): plan, epoch permutation, gather, corrupt, scatter. Nothing to save or restore.

A host may ask for its rows only; they are bit-identical to those rows of the whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lm import duration
from lm.config import ConfigError
from lm.data import plan as plans
from lm.data import plan_file
from lm.data.corrupt import Noise, ranges
from lm.data.mix import Mixture
from lm.data.plan import Plan
from lm.data.reserve import reserve
from lm.data.store import Store
from lm.data.tokenizer import Tokenizer
from lm.shapes import INPUT_FIELDS, INPUTS, Batch

EMPTY = -1  # the row of a batch that holds nothing
PARTNERS = (8, *range(32, 63))  # the draws of the noise that choose partners
SAMPLE = 256  # rows that are corrupted to say how full they are then


@dataclasses.dataclass(frozen=True)
class StreamData:
  """One stream's stored corpus.

  key: where its task's arrays stand in a batch. stages: (first step, weight), its share of rows from there on.
  num_virtual: positions that are reserved in front of every sequence, as `reserve.reserve` does.
  """

  name: str
  key: str
  task: Any
  store: Store
  tok: Tokenizer
  stages: tuple[tuple[int, float], ...] = ((0, 1.0),)
  num_virtual: int = 0


class Rows:
  """The rows of one stream at one row length, by number in its plan."""

  def __init__(self, stream: StreamData, seq_len: int, seed: int):
    self.stream, self.seq_len, self._seed = stream, seq_len, seed
    task, store = stream.task, stream.store
    shift = max(field.shift for field in task.fields.values())
    lengths = np.maximum(store.lengths - shift, 0)
    # A row also has to hold what is stored, and what is reserved in front of it.
    reserved = stream.num_virtual * task.num_segments
    cost = lambda lengths_N: np.maximum(task.row_cost(lengths_N), lengths_N) + reserved
    self.plan: Plan = self._pack(lengths, cost) if task.packed else plans.pad(lengths, seq_len, cost)
    drawn = {field.column or name for name, field in task.fields.items() if field.partner}
    self._pools = {column: np.flatnonzero(np.diff(store.offsets(column)) > 0) for column in drawn}
    if any(len(pool) < 2 for pool in self._pools.values()):
      raise ConfigError(f"stream {stream.name!r}: one sequence only, and the task pairs it with another")
    if not self.plan.num_rows:
      raise ConfigError(f"stream {stream.name!r}: no sequence of one token or more")
    sizes = self.plan.stop - self.plan.start
    self.room = self.plan.row_sums(cost(sizes))  # positions that each row takes at most
    counts = task.target_counts(sizes)
    widest = seq_len if counts is None else int(self.plan.row_sums(counts).max())
    self.width = min(-(-widest // 8) * 8, seq_len) if counts is not None else seq_len
    self._columns = {c: (store.values(c), np.asarray(store.offsets(c))) for c in store.columns}

  def _pack(self, lengths: np.ndarray, cost: plans.RowCost) -> Plan:
    """The plan of packed rows; a task that does not split has sequences cut to a row."""
    longest = plans.longest_piece(self.seq_len, cost)
    kept = lengths if self.stream.task.splits else np.minimum(lengths, longest)
    plan = plan_file.pack(self.stream.store.path, kept, self.seq_len, self._seed, cost)
    return dataclasses.replace(plan, num_truncated=int(np.sum(kept < lengths)))

  def filled(self) -> float:
    """Share of the positions that are no padding after the corruption of epoch 0, of SAMPLE rows all over the plan."""
    numbers = np.linspace(0, self.plan.num_rows - 1, min(SAMPLE, self.plan.num_rows)).astype(np.int64)
    return float((self.read(numbers, np.zeros_like(numbers), self.seq_len)["segment_ids"] > 0).mean())

  def read(self, rows: np.ndarray, epochs: np.ndarray, length: int) -> dict[str, np.ndarray]:
    """The task's arrays of these rows [R, length], corrupted, with tokens, segment_ids and positions among them.

    rows may hold EMPTY, which gives a row of padding.
    """
    plan, fields = self.plan, self.stream.task.fields
    filled = rows != EMPTY
    first = np.where(filled, plan.row_offsets[rows], 0)
    num_pieces = np.where(filled, plan.row_offsets[rows + 1] - first, 0)
    row_of_piece = np.repeat(np.arange(len(rows)), num_pieces)
    rank = np.arange(len(row_of_piece)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    piece = first[row_of_piece] + rank
    sizes = plan.stop[piece] - plan.start[piece]
    # One entry per token from here on: its piece, its place in the piece, and where it goes in [R, length].
    starts = np.cumsum(sizes) - sizes
    within = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    tokens_of_row = np.bincount(row_of_piece, sizes, len(rows)).astype(np.int64)
    before_row = np.cumsum(tokens_of_row) - tokens_of_row
    target = np.repeat(row_of_piece * length + starts - before_row[row_of_piece], sizes) + within
    offset = np.repeat(plan.start[piece], sizes) + within
    sequence = plan.sequence[piece]

    def spread(values: Any, dtype: str, pad: int = 0) -> np.ndarray:
      flat = np.full(len(rows) * length, pad, dtype)
      flat[target] = values
      return flat.reshape(len(rows), length)

    noise_at = spread(np.repeat(sequence, sizes), "int64"), spread(offset, "int64")
    noise = Noise(self._seed, epochs, *noise_at)
    found = {}
    for name, field in fields.items():
      values, offsets = self._columns[field.column or name]
      if field.partner:
        found[name] = self._of_partners(name, np.flatnonzero(filled), noise)
      elif field.dims == ("T",):
        found[name] = spread(values[np.repeat(offsets[sequence], sizes) + offset + field.shift], field.dtype, field.pad)
      else:
        found[name] = np.full(len(rows), field.pad, field.dtype)
        found[name][row_of_piece] = values[offsets[sequence]]
    found["segment_ids"] = spread(np.repeat(rank + 1, sizes), "int32")
    found["positions"] = spread(within, "int32")
    num_virtual = self.stream.num_virtual
    width = min(self.width, max(length - num_virtual, 1))  # with reserved positions P < T, which tells arrays apart
    inputs = {name: found[name] for name in ("tokens", "segment_ids", "positions")}
    arrays = inputs | self.stream.task.corrupt(found, noise, self.stream.tok, width)
    return reserve(arrays, num_virtual) if num_virtual else arrays

  def _of_partners(self, name: str, filled: np.ndarray, noise: Noise) -> np.ndarray:
    """A field [R, length] of the other sequence that each filled row (of one sequence) is paired with."""
    (R, length), field = noise.sequence_RT.shape, self.stream.task.fields[name]
    values, offsets = self._columns[field.column or name]
    first, pool, own = filled * length, self._pools[field.column or name], noise.sequence_RT[filled, 0]
    place = np.searchsorted(pool, own)
    among = pool[np.minimum(place, len(pool) - 1)] == own  # then all but itself can be drawn
    step = noise.bits(PARTNERS[field.partner - 1], first) % (len(pool) - among).astype(np.uint64)
    partner = pool[(np.where(among, place + 1, 0) + step.astype(np.int64)) % len(pool)]
    sizes = np.minimum(offsets[partner + 1] - offsets[partner], length)
    flat = np.full(R * length, field.pad, field.dtype)
    flat[ranges(first, sizes)] = values[ranges(offsets[partner], sizes)]
    return flat.reshape(R, length)


class Loader:
  """The training batches of all streams."""

  def __init__(
    self, streams: Sequence[StreamData], *, batch_size: int, seq_len: int, buckets: tuple[int, ...] = (), seed: int = 0
  ):
    self._streams, self._batch_size, self._seq_len, self._seed = tuple(streams), batch_size, seq_len, seed
    if buckets and any(stream.task.packed for stream in streams):
      raise ConfigError(f"config.length_buckets={buckets}: packed rows are always full; leave it ()")
    if buckets and len(self._streams) > 1:
      raise ConfigError(f"config.length_buckets={buckets}: rows of several streams share one length; leave it ()")
    steps = sorted({step for stream in streams for step, _ in stream.stages})
    self._mixture = Mixture(
      [(step * batch_size, [duration.weight_at(stream.stages, step) for stream in streams]) for step in steps]
    )
    self._rows = [Rows(stream, seq_len, seed) for stream in streams]
    self._orders = [_make_order(seed, i, rows.plan.num_rows) for i, rows in enumerate(self._rows)]
    self._buckets = _Buckets(self._rows[0].room, batch_size, buckets) if buckets else None

  @property
  def rows_per_epoch(self) -> int:
    """Rows until the first stream has been read once (batches times their size where rows stand in buckets)."""
    if self._buckets:
      return self._buckets.num_batches * self._batch_size
    return self._mixture.rows_until([rows.plan.num_rows for rows in self._rows])

  def streams_of(self, step: int) -> np.ndarray:
    """Which stream each row of a step's global batch belongs to, by its number, [B]."""
    return self._mixture.locate(step * self._batch_size + np.arange(self._batch_size))[0]

  def batch(self, step: int, rows: slice | np.ndarray = slice(None)) -> Batch:
    """The global batch of a step (from 0), or those of its rows that a slice or their numbers say."""
    wanted = np.arange(self._batch_size)[rows]
    if self._buckets:
      epoch, index = divmod(step, self._buckets.num_batches)
      length, numbers = self._buckets.batch(self._seed, epoch, index)
      return self._assemble(wanted, np.zeros_like(wanted), numbers[wanted], np.full(len(wanted), epoch), length)
    stream, nth = self._mixture.locate(step * self._batch_size + wanted)
    numbers, epochs = np.empty_like(nth), np.empty_like(nth)
    for i, source in enumerate(self._rows):
      mine = np.flatnonzero(stream == i)
      epochs[mine] = nth[mine] // source.plan.num_rows
      for epoch in np.unique(epochs[mine]):
        now = mine[epochs[mine] == epoch]
        numbers[now] = self._orders[i](int(epoch))[nth[now] % source.plan.num_rows]
    return self._assemble(wanted, stream, numbers, epochs, self._seq_len)

  def shapes(self) -> list[Batch]:
    """An empty batch of every shape that `batch` gives."""
    wanted = np.arange(self._batch_size)
    nothing = np.full(self._batch_size, EMPTY)
    lengths = self._buckets.lengths if self._buckets else (self._seq_len,)
    return [self._assemble(wanted, np.zeros_like(wanted), nothing, np.zeros_like(wanted), n) for n in lengths]

  def first_steps(self) -> list[int]:
    """The first step of each shape that the first epoch has."""
    if not self._buckets:
      return [0]
    lengths = [length for length, _ in self._buckets.epoch(self._seed, 0)]
    return [lengths.index(length) for length in sorted(set(lengths))]

  def report(self) -> str:
    """A table with a line per stream: what it holds, how it was packed, and which share of the positions is no padding.

    Where corruption adds symbols or positions are reserved, `corrupted` is the share then, of SAMPLE rows.
    """
    adds = any((rows.room > rows.plan.row_lengths).any() for rows in self._rows)
    heads = ["data", "sequences", "split", "cut", "tokens", f"rows of {self._seq_len}", "pieces per row", "real"]
    lines = [heads + ["corrupted"] * adds]
    for stream, rows in zip(self._streams, self._rows, strict=True):
      plan, num_tokens = rows.plan, int(rows.plan.row_lengths.sum())
      space = self._buckets.num_tokens if self._buckets else plan.num_rows * self._seq_len
      counts = [np.count_nonzero(stream.store.lengths), plan.num_split, plan.num_truncated, num_tokens, plan.num_rows]
      shares = [f"{len(plan.sequence) / plan.num_rows:.1f}", f"{num_tokens / space:.1%}"]
      lines.append([stream.name, *(f"{count:,}" for count in counts), *shares, *([f"{rows.filled():.1%}"] if adds else [])])
    return aligned(lines)

  def _assemble(self, wanted, stream, numbers, epochs, length) -> Batch:
    """Rows read per stream, scattered to their places; a task's arrays are zero in rows of other tasks.

    Streams of one task share its arrays, among them then `stream` [B]: which of them, by rank, a row is of.
    """
    batch: dict[str, dict[str, np.ndarray]] = {INPUTS: {"row": wanted.astype(np.int32)}}
    for i, source in enumerate(self._rows):
      mine = np.flatnonzero(stream == i)
      for name, values in source.read(numbers[mine], epochs[mine], length).items():
        part = batch.setdefault(INPUTS if name in INPUT_FIELDS else source.stream.key, {})
        shape = (len(wanted), *values.shape[1:])
        if name in part and part[name].shape != shape:  # two streams of one task, of different width
          shape = tuple(np.maximum(part[name].shape, shape))
          part[name] = np.pad(part[name], [(0, s - p) for s, p in zip(shape, part[name].shape, strict=True)])
        whole = part.setdefault(name, np.zeros(shape, values.dtype))
        whole[(mine, *(slice(size) for size in values.shape[1:]))] = values
    keys = [other.key for other in self._streams]
    for key in {key for key in keys if keys.count(key) > 1}:
      shares = np.array([other == key for other in keys])
      batch[key]["stream"] = ((np.cumsum(shares) - 1) * shares)[stream].astype(np.int32)
    return batch


class EvalLoader:
  """Every row of one stream's split once, in a fixed order and with the noise of epoch 0; the last batch is filled up."""

  def __init__(self, stream: StreamData, *, batch_size: int, seq_len: int, buckets: tuple[int, ...] = ()):
    self._rows = Rows(stream, seq_len, seed=0)
    self._batch_size = batch_size
    self._buckets = _Buckets(self._rows.room, batch_size, buckets or (seq_len,))

  def __len__(self) -> int:
    return self._buckets.num_batches

  def __iter__(self) -> Iterator[tuple[Batch, np.ndarray]]:
    """(batch, [B] number of each row's first stored sequence, EMPTY for filled-up rows)."""
    plan = self._rows.plan
    for length, numbers in self._buckets.in_order():
      first = plan.sequence[plan.row_offsets[np.maximum(numbers, 0)]]
      yield self._batch(numbers, length), np.where(numbers == EMPTY, EMPTY, first)

  def shapes(self) -> list[Batch]:
    """An empty batch of every shape."""
    return [self._batch(np.full(self._batch_size, EMPTY), length) for length in self._buckets.lengths]

  def _batch(self, numbers: np.ndarray, length: int) -> Batch:
    arrays = self._rows.read(numbers, np.zeros(len(numbers), np.int64), length)
    inputs = {name: arrays.pop(name) for name in INPUT_FIELDS if name in arrays}
    inputs["row"] = np.arange(len(numbers), dtype=np.int32)
    return {INPUTS: inputs, self._rows.stream.key: arrays}


def put(arrays: dict[str, np.ndarray], name: str, places: np.ndarray, values: np.ndarray, count: int) -> None:
  """Puts values [R, ...] at places [R] of an array [count, ...] that grows where rows are longer than those before: zeros."""
  whole = arrays.get(name, np.zeros((count, *values.shape[1:]), values.dtype))
  grow = [(0, max(new - old, 0)) for new, old in zip(values.shape[1:], whole.shape[1:], strict=True)]
  arrays[name] = whole = np.pad(whole, [(0, 0), *grow]) if any(more for _, more in grow) else whole
  whole[(places, *(slice(size) for size in values.shape[1:]))] = values


class _Buckets:
  """Batches of rows of similar length. What does not fill a batch moves up to the next length, at last beside EMPTY."""

  def __init__(self, room_R: np.ndarray, batch_size: int, lengths: tuple[int, ...]):
    if list(lengths) != sorted(set(lengths)) or lengths[-1] < room_R.max():
      raise ConfigError(f"config.length_buckets={lengths}: must rise to config.seq_len; a row has {room_R.max()} positions")
    self.lengths, self._batch_size = lengths, batch_size
    self._bucket = np.searchsorted(np.asarray(lengths), room_R)
    sizes = [length for length, _ in self.in_order()]
    self.num_batches = len(sizes)
    self.num_tokens = sum(sizes) * batch_size

  def in_order(self, rng: np.random.Generator | None = None) -> list[tuple[int, np.ndarray]]:
    """(length, row numbers [B]) of all batches; rows within a bucket in the order of `rng`, or of the plan."""
    batches, carried = [], np.zeros(0, np.int64)
    for i, length in enumerate(self.lengths):
      mine = np.flatnonzero(self._bucket == i)
      numbers = np.concatenate([carried, rng.permutation(mine) if rng is not None else mine])
      full = len(numbers) // self._batch_size * self._batch_size
      batches += [(length, part) for part in numbers[:full].reshape(-1, self._batch_size)]
      carried = numbers[full:]
    if len(carried):
      batches.append((self.lengths[-1], np.pad(carried, (0, self._batch_size - len(carried)), constant_values=EMPTY)))
    return batches

  def batch(self, seed: int, epoch: int, index: int) -> tuple[int, np.ndarray]:
    """Batch number `index` of an epoch."""
    return self.epoch(seed, epoch)[index]

  @functools.lru_cache(maxsize=2)  # noqa: B019 - a loader lives as long as its run
  def epoch(self, seed: int, epoch: int) -> list[tuple[int, np.ndarray]]:
    """(length, row numbers [B]) of all batches of an epoch."""
    rng = np.random.default_rng([seed, epoch])
    batches = self.in_order(rng)
    return [batches[i] for i in rng.permutation(len(batches))]


def _make_order(seed: int, stream: int, num_rows: int) -> Callable[[int], np.ndarray]:
  """From an epoch to the order of a stream's rows; the two last are kept, as a batch may stand across two epochs."""
  return functools.lru_cache(maxsize=2)(lambda epoch: np.random.default_rng([seed, stream, epoch]).permutation(num_rows))


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Cells in columns, the first of each line to the left and the others to the right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  right = lambda line: [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
  return "\n".join("  ".join([line[0].ljust(widths[0]), *right(line)]) for line in lines)
