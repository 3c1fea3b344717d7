"""Every stream stays within one row of its share, at every row."""

import numpy as np
import pytest

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
