"""Statistics over seeds: against tables of t, all draws of a bootstrap, and how often an interval holds the truth."""

import itertools

import numpy as np
import pytest

from lm import seeds


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (30, 2.045)])
def test_the_interval_is_that_of_the_tables(n, t):
  values = np.random.default_rng(n).normal(size=n)
  found = seeds.describe(dict(enumerate(values.tolist())))
  assert found["mean"] == pytest.approx(values.mean()) and found["std"] == pytest.approx(values.std(ddof=1))
  low, high = found["interval95"]
  assert (high - low) / 2 == pytest.approx(t * found["std"] / n**0.5, rel=1e-3)
  assert (high + low) / 2 == pytest.approx(found["mean"])


def test_the_interval_holds_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  held = [
    low <= 1 <= high for low, high in (seeds.describe(dict(enumerate(rng.normal(1, 2, 3))))["interval95"] for _ in range(4000))
  ]
  assert np.mean(held) == pytest.approx(0.95, abs=0.01)


def test_the_bootstrap_is_that_of_all_draws():
  values = [0.1, 0.4, 0.2, 0.9]
  means = [np.mean(draw) for draw in itertools.product(values, repeat=4)]
  found = seeds.describe(dict(enumerate(values)), paired=True)
  np.testing.assert_allclose(found["bootstrap95"], np.quantile(means, [0.025, 0.975]), atol=0.03)
  assert "bootstrap95" not in seeds.describe(dict(enumerate(values)))


def test_one_value_has_a_mean_and_none_has_nothing():
  one, none = (seeds.describe(values, paired=True) for values in ({7: 0.5}, {}))
  assert (one["mean"], one["std"], one["interval95"], one["bootstrap95"]) == (0.5, None, None, None)
  assert none["mean"] is None
  assert (seeds.spread(one), seeds.spread(one, "+"), seeds.spread(none)) == ("0.500", "+0.500", "-")
