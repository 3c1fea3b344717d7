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
  stream, nth = Mixture(weights).locate(rows)
  for i, share in enumerate(np.array(weights) / sum(weights)):
    served = np.cumsum(stream == i)
    assert np.abs(served - share * (rows + 1)).max() <= 1
    assert (nth[stream == i] == np.arange(served[-1])).all()


def test_weights_without_a_short_period_are_refused():
  with pytest.raises(ConfigError, match="round them"):
    Mixture((0.123456789, 0.3, 0.7))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 10_000))
def test_any_weights_keep_their_shares_from_the_first_row_on(weights, first):
  mixture, total = Mixture(weights), sum(weights)
  stream, nth = mixture.locate(np.arange(2 * total))
  for i, weight in enumerate(weights):
    served = np.cumsum(stream == i)
    assert np.abs(served * total - weight * np.arange(1, 2 * total + 1)).max() <= total
    assert (nth[stream == i] == np.arange(served[-1])).all()
  later = np.arange(first, first + 20)
  assert (np.stack(mixture.locate(later)) == np.stack(mixture.locate(np.arange(first + 20)))[:, first:]).all()


@pytest.mark.parametrize("weights", [(0, 1), (-1, 2), (float("nan"), 1), (float("inf"), 1)])
def test_weights_that_are_no_share_are_refused(weights):
  with pytest.raises(ConfigError, match="above 0"):
    Mixture(weights)
