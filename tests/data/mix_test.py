"""Every stream stays within one row of its share, at every row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import ConfigError
from lm.data.mix import Mixture


@pytest.mark.parametrize("weights", [(1,), (0.7, 0.3), (1, 1, 1), (0.001, 0.5, 0.499), (3, 1, 1, 1, 1), (5, 4, 3, 2, 1)])
def test_shares_are_kept_within_one_row(weights):
  rows = np.arange(4000)
  stream, nth = Mixture([(0, weights)]).locate(rows)
  for i, share in enumerate(np.array(weights) / sum(weights)):
    served = np.cumsum(stream == i)
    assert np.abs(served - share * (rows + 1)).max() <= 1
    assert (nth[stream == i] == np.arange(served[-1])).all()


def served(stages, num_rows):
  """The streams of the first rows, and (rows served, sum of the shares) of each stream after each of them."""
  mixture = Mixture(stages)
  stream, nth = mixture.locate(np.arange(num_rows))
  shares = np.zeros((num_rows, len(stages[0][1])))
  for first, weights in stages:
    shares[first:] = np.array(weights) / sum(weights)
  counts = np.cumsum(stream[:, None] == np.arange(shares.shape[1]), axis=0)
  assert (nth == counts[np.arange(num_rows), stream] - 1).all()
  return stream, counts, np.cumsum(shares, axis=0)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_weights_that_change_stay_within_one_row_of_the_sum_of_their_shares(data, n):
  weight = st.sampled_from([0, 1, 2, 3, 7, 20])
  firsts = [0, *sorted(data.draw(st.sets(st.integers(1, 300), max_size=4)))]
  stages = [(first, data.draw(st.lists(weight, min_size=n, max_size=n).filter(any))) for first in firsts]
  _, counts, shares = served(stages, 700)
  assert np.abs(counts - shares).max() <= 1 - 1 / (2 * max(n, 2) - 2) + 1e-9


def test_a_stage_of_many_rows_is_served_like_one_that_was_looked_at_row_by_row():
  few, many = 30_000, 900_000_000
  stages = lambda first: [(0, (0.001, 0.3, 0.699)), (first, (5, 0, 2)), (first + 700, (0, 1, 1))]
  _, counts, shares = served(stages(few), few + 1400)
  assert np.abs(counts - shares).max() <= 0.75 + 1e-9
  late = np.arange(1400) - 300
  near, far = Mixture(stages(few)).locate(few + late), Mixture(stages(many)).locate(many + late)
  assert (near[0] == far[0]).all()
  moved = ((many - few) * np.array([0.001, 0.3, 0.699])).round().astype(int)
  assert (far[1] - near[1] == moved[near[0]]).all()


def test_a_stream_without_weight_waits():
  stream, *_ = served([(0, (1, 0)), (10, (0, 1)), (20, (1, 1))], 30)
  assert stream[:20].tolist() == [0] * 10 + [1] * 10
  assert sorted(stream[20:].tolist()) == [0] * 5 + [1] * 5


def test_rows_until_the_first_stream_has_given_its_count():
  assert Mixture([(0, (0.3, 0.7))]).rows_until([3, 70]) == 10
  mixture = Mixture([(0, (1, 0)), (10, (1, 4)), (60, (0, 1))])
  assert mixture.rows_until([8, 1000]) == 8
  assert mixture.rows_until([12, 1000]) == 20
  assert mixture.rows_until([1000, 20]) == 35
  assert mixture.rows_until([1000, 50]) == 70


def test_weights_without_a_short_period_are_refused():
  with pytest.raises(ConfigError, match="round them"):
    Mixture([(0, (0.123456789, 0.3, 0.7))])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 10_000))
def test_any_weights_keep_their_shares_from_the_first_row_on(weights, first):
  mixture, total = Mixture([(0, weights)]), sum(weights)
  stream, nth = mixture.locate(np.arange(2 * total))
  for i, weight in enumerate(weights):
    served = np.cumsum(stream == i)
    assert np.abs(served * total - weight * np.arange(1, 2 * total + 1)).max() <= total
    assert (nth[stream == i] == np.arange(served[-1])).all()
  later = np.arange(first, first + 20)
  assert (np.stack(mixture.locate(later)) == np.stack(mixture.locate(np.arange(first + 20)))[:, first:]).all()


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (float("nan"), 1), (float("inf"), 1)])
def test_weights_that_are_no_share_are_refused(weights):
  with pytest.raises(ConfigError, match="one of them above 0"):
    Mixture([(0, weights)])
