"""Metrics by hand: which classes macro F1 counts, and which way of a metric is better."""

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
  ],
)
def test_losses_are_better_when_lower_and_scores_when_higher(name, better, worse):
  assert metrics.is_better(name, better, worse)
  assert not metrics.is_better(name, worse, better)
  assert not metrics.is_better(name, worse, worse)
