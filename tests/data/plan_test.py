"""Plans hold every token once, within the row, and waste little."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import ConfigError
from lm.data import plan

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=60).map(np.array)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 32), st.integers(0, 3))
def test_packing_holds_every_token_once(lengths, capacity, seed):
  rows = plan.pack(lengths, capacity, seed)
  seen = [(s, t) for s, a, b in zip(rows.sequence, rows.start, rows.stop, strict=True) for t in range(a, b)]
  assert sorted(seen) == [(s, t) for s, n in enumerate(lengths) for t in range(n)]
  assert rows.row_lengths.max(initial=0) <= capacity
  assert rows.num_split == np.sum(lengths > capacity)


def test_packing_fills_rows_of_text():
  lengths = np.random.default_rng(0).lognormal(4, 1, 4000).astype(int) + 1
  rows = plan.pack(lengths, 512, 0)
  assert rows.row_lengths.sum() / (rows.num_rows * 512) > 0.99


def test_padding_cuts_and_counts():
  rows = plan.pad(np.array([3, 0, 9]), 8)
  assert rows.row_lengths.tolist() == [3, 8]
  assert rows.sequence.tolist() == [0, 2]
  assert rows.num_truncated == 1


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(6, 32), st.integers(0, 3))
def test_what_pieces_cost_fits_the_row_and_tokens_stay_whole(lengths, capacity, extra):
  row_cost = lambda lengths_N: lengths_N + np.where(lengths_N > 0, extra, 0)
  rows = plan.pack(lengths, capacity, 0, row_cost)
  seen = [(s, t) for s, a, b in zip(rows.sequence, rows.start, rows.stop, strict=True) for t in range(a, b)]
  assert sorted(seen) == [(s, t) for s, n in enumerate(lengths) for t in range(n)]
  assert rows.row_sums(row_cost(rows.stop - rows.start)).max(initial=0) <= capacity
  padded = plan.pad(lengths, capacity, row_cost)
  assert (padded.stop <= np.minimum(lengths[padded.sequence], capacity - extra)).all()
  assert padded.num_truncated == np.sum(lengths > capacity - extra)


def test_a_row_too_short_for_one_token_is_refused():
  with pytest.raises(ConfigError, match="config.seq_len=4: one token of this task takes 6 positions"):
    plan.pack(np.array([3]), 4, 0, lambda lengths_N: lengths_N + 5)


def test_windows_are_packed_apart(monkeypatch):
  monkeypatch.setattr(plan, "WINDOW", 10)
  rows = plan.pack(np.full(35, 3), 6, 0)
  assert rows.row_lengths.tolist() == [6] * 17 + [3]
  assert sorted(rows.sequence.tolist()) == list(range(35))
