"""A TPU that is not there: libtpu compiles for it on a CPU."""

import importlib.util
import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType


def make_mesh(name: str, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.sharding.Mesh:
  """A mesh over the devices of a topology such as v5e:2x2; the test is skipped where libtpu is not installed."""
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs libtpu, which exists for Linux on x86-64")
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
  return jax.sharding.Mesh(np.array(devices).reshape(shape), axes, axis_types=(AxisType.Auto,) * len(axes))
