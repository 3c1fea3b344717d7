"""Metrics by hand: which classes macro F1 counts, and which way of a metric is better."""

import warnings

import numpy as np
import pytest

from lm import metrics


def test_macro_f1_counts_classes_that_are_present_or_predicted():
  # Class 0: tp 1, fn 1. Class 1: tp 1, fp 0. Class 2: predicted once and never right. Class 3: nowhere.
  assert metrics.macro_f1([0, 0, 1], [0, 2, 1], 4) == pytest.approx((2 / 3 + 1 + 0) / 3)


@pytest.mark.parametrize(
  ("name", "better", "worse"),
  [
    ("eval/a/loss", 1, 2),
    ("eval/a/perplexity", 1, 2),
    ("eval/a/bits_per_byte", 1, 2),
    ("eval/a/accuracy", 2, 1),
    ("macro_f1", 2, 1),
    ("eval/a/mse", 1, 2),
    ("eval/a/pair_loss", 1, 2),
    ("eval/harness/wikitext_word_perplexity", 1, 2),
    ("eval/harness/wikitext_bits_per_byte", 1, 2),
    ("eval/a/balance", 1, 2),
    ("eval/a/f1_z", 2, 1),
    ("eval/a/pearson", 2, 1),
  ],
)
def test_losses_are_better_when_lower_and_scores_when_higher(name, better, worse):
  assert metrics.is_better(name, better, worse)
  assert not metrics.is_better(name, worse, better)
  assert not metrics.is_better(name, worse, worse)


def test_matthews_correlation_and_f1_are_those_of_the_confusion_matrix():
  rng = np.random.default_rng(0)
  for num_classes in (2, 4):
    labels = rng.integers(num_classes, size=60)
    found = np.where(rng.random(60) < 0.6, labels, rng.integers(num_classes, size=60))
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, found), 1)
    # Gorodkin 2004 by counts, as scikit-learn has it.
    t, p, c, s = counts.sum(1), counts.sum(0), np.trace(counts), counts.sum()
    expected = (c * s - t @ p) / np.sqrt((s**2 - p @ p) * (s**2 - t @ t))
    assert metrics.matthews(labels, found, num_classes) == pytest.approx(expected)
    tp = counts[1, 1]
    assert metrics.f1(labels, found, 1) == pytest.approx(2 * tp / (counts[1].sum() + counts[:, 1].sum()))
    if num_classes == 2:
      assert metrics.matthews(labels, found, 2) == pytest.approx(metrics.pearson(labels, found))
  assert metrics.matthews([0, 1, 1], [1, 1, 1], 2) == metrics.f1([0, 0], [0, 0], 1) == 0
  assert metrics.matthews([0, 1, 2], [0, 1, 2], 3) == pytest.approx(1)


@pytest.mark.parametrize("ties", [1, 3, 1000])
def test_correlations_are_those_of_scipy_with_and_without_ties(ties):
  from scipy import stats

  rng = np.random.default_rng(ties)
  for count in (2, 3, 10, 200):
    x = rng.integers(0, ties * 3, count) / 7
    y = np.round(x + rng.normal(size=count), 1 if ties < 1000 else 9)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # scipy's of series that are the same everywhere
      expected = [np.nan_to_num(found(x, y).statistic) for found in (stats.pearsonr, stats.spearmanr)]
    np.testing.assert_allclose([metrics.pearson(x, y), metrics.spearman(x, y)], expected, atol=1e-12)
    np.testing.assert_array_equal(metrics.ranks(x), stats.rankdata(x))


def test_a_correlation_with_a_constant_is_zero_and_any_line_is_one():
  assert metrics.pearson([1, 1, 1], [1, 2, 3]) == metrics.spearman([1, 2, 3], [4, 4, 4]) == metrics.pearson([], []) == 0
  assert metrics.pearson([1, 2, 4], [5, 7, 11]) == pytest.approx(1)
  assert metrics.spearman([1, 2, 4], [5, -7, -11]) == pytest.approx(-1)
