"""The examples in the docstrings of lm.shapes, and kernels without a model dim."""

import doctest

import pytest

from lm import shapes


def test_the_examples_hold():
  found = doctest.testmod(shapes)
  assert found.attempted >= 4
  assert not found.failed


@pytest.mark.parametrize("axes", [("layers", "mlp", "heads"), ("layers", "experts", "mlp", "heads")])
def test_a_kernel_without_a_model_dim_is_refused(axes):
  with pytest.raises(AssertionError, match="'embed' on one side"):
    shapes.kernel_dims(axes)
