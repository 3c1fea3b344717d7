"""Signatures estimate what sets really share; the index finds what a comparison of all pairs finds, in any order of calls."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.data import minhash
from lm.data.corrupt import splitmix


def make_sets(sizes, shared, seed=0):
  """Two sets of hashes for each (size, shared): Jaccard similarity shared / (2 size - shared)."""
  sets, number = [], seed << 20
  for size, common in zip(sizes, shared, strict=True):
    elements = splitmix(np.arange(number, number + 2 * size - common, dtype=np.uint64))
    sets += [elements[:size], elements[size - common :]]
    number += 2 * size
  first = np.cumsum([0, *(len(each) for each in sets[:-1])])
  return np.concatenate(sets), first


@pytest.mark.parametrize("similarity", [0.2, 0.5, 0.8, 0.95])
def test_estimates_have_the_mean_and_spread_they_say(similarity):
  size, num_pairs = 200, 300
  common = round(2 * size * similarity / (1 + similarity))
  signatures = minhash.signatures(*make_sets([size] * num_pairs, [common] * num_pairs), num_permutations=128, seed=3)
  estimates = (signatures[::2] == signatures[1::2]).mean(1)
  exact = common / (2 * size - common)
  deviation = (exact * (1 - exact) / 128) ** 0.5
  assert abs(estimates.mean() - exact) < 4 * deviation / num_pairs**0.5
  assert estimates.std() == pytest.approx(deviation, rel=0.2)


def test_a_band_is_as_long_as_the_threshold_allows():
  rows = minhash.rows_per_band(0.8, 128)
  assert rows == 6
  found = lambda rows: 1 - (1 - 0.8**rows) ** (128 // rows)
  assert found(rows) >= minhash.FOUND > found(rows + 1)
  assert minhash.rows_per_band(1.0, 128) == 128


@given(st.lists(st.integers(0, 6), max_size=40), st.lists(st.integers(1, 10), min_size=1), st.sampled_from([0.3, 0.6, 1.0]))
def test_the_index_keeps_what_comparing_all_pairs_keeps(kinds, sizes, threshold):
  """Sets of a few kinds that share elements, given in pieces: the pieces do not matter, and near ones are found."""
  elements = [splitmix(np.arange(50 * kind, 50 * kind + 100, dtype=np.uint64)) for kind in range(7)]
  signatures = [minhash.signatures(elements[kind], np.zeros(1, int), 64, 0)[0] for kind in kinds]
  index, found = minhash.Index(threshold, 64), []
  rest = np.array(signatures, np.uint32).reshape(-1, 64)
  for size in [*sizes, len(kinds)]:
    now, rest = rest[:size], rest[size:]
    near, similarity = index.add(now)
    found += zip(near.tolist(), similarity.tolist(), strict=True)
  kept, expected = [], []
  for signature in signatures:
    estimates = [float((signature == other).mean()) for other in kept]
    shares = [any((signature == other).reshape(-1)[: 64 // rows * rows].reshape(-1, rows).all(1)) for other in kept
              for rows in [minhash.rows_per_band(threshold, 64)]]  # fmt: skip
    best = max((value for value, band in zip(estimates, shares, strict=True) if band), default=0.0)
    if best >= threshold:
      expected.append((estimates.index(best), best))
    else:
      expected.append((-1, 0.0))
      kept.append(signature)
  assert [similarity for _, similarity in found] == [similarity for _, similarity in expected]
  assert [near for near, _ in found] == [near for near, _ in expected]
  assert len(index) == len(kept)


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=8))
def test_runs_give_every_number_of_a_key(pieces):
  runs, held = minhash.SortedRuns(), []
  for piece in pieces:
    numbers = np.arange(len(held), len(held) + len(piece), dtype=np.uint32)
    runs.add(np.array(piece, np.uint64), numbers)
    held += zip(piece, numbers.tolist(), strict=True)
  wanted = np.array([3, 9, 0, 3], np.uint64)
  found = sorted(zip(*(each.tolist() for each in runs.find(wanted)), strict=True))
  assert found == sorted((place, number) for place, key in enumerate(wanted) for k, number in held if k == key)
