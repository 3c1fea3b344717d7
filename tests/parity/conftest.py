"""Without transformers there is nothing to compare with: the tests of this folder are not collected then."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("transformers") else ["*_test.py"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
  """Models are small and tests run side by side: torch's threads would only wait for each other."""
  import torch

  torch.set_num_threads(1)
