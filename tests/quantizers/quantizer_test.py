"""Quantised kernels as arrays: the published values, what rounding may cost, brute force, what they take."""

import itertools
import statistics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import plug
from lm.config import Plug
from lm.quantizers.nf4 import VALUES
from lm.shapes import kernel_dims
from tests.conftest import make_run

EVERY = plug.names("quantizer")
GRIDS = {"nf4": np.array(VALUES), "int8": np.arange(-127, 128) / 127}
KERNELS = {
  "query": ((3, 16, 2, 4), ("layers", "embed", "heads", "channels")),
  "out": ((3, 2, 8, 12), ("layers", "heads", "channels", "embed")),
  "down": ((3, 24, 5), ("layers", "mlp", "embed")),
  "experts": ((2, 3, 8, 6), ("layers", "experts", "embed", "mlp")),
}
EACH = [*itertools.product(EVERY, (False, True), KERNELS)]


def make(name, **options):
  return plug.make("quantizer", Plug(name, tuple(({"block": 4} | options).items())))


def box_of(kernel, seed=0):
  shape, names = KERNELS[kernel]
  values = np.random.default_rng(seed).normal(size=shape) * np.geomspace(0.1, 1, shape[-1])
  return nn.LogicallyPartitioned(jnp.asarray(values, jnp.float32), names)


def unpack(quantizer, packed):
  return np.asarray(quantizer.unpack({name: box.value for name, box in packed.items()}))


def brute_force(kernel, inputs, grid, double, block=4):
  """The kernel rounded, and the scale of each weight, in float64: one output after the other, one block after the other."""
  rounded, scales = np.zeros(kernel.shape), np.zeros(kernel.shape)
  others = [dim for dim in range(kernel.ndim) if dim not in inputs]
  for output in np.ndindex(*(kernel.shape[dim] for dim in others)):
    at = tuple(output[others.index(dim)] if dim in others else slice(None) for dim in range(kernel.ndim))
    blocks = kernel[at].reshape(-1, block)  # consecutive inputs
    of_block = np.abs(blocks).max(1)
    if double:
      of_block = np.round(of_block / of_block.max() * 255) / 255 * of_block.max()
    nearest = [[grid[np.abs(grid * s - x).argmin()] * s for x in row] for row, s in zip(blocks, of_block, strict=True)]
    rounded[at] = np.reshape(nearest, kernel[at].shape)
    scales[at] = np.repeat(of_block, block).reshape(kernel[at].shape)
  return rounded, scales


def test_the_values_of_nf4_are_quantiles_of_a_normal_distribution():
  """Appendix E and bitsandbytes: equal steps of probability on either side of 0, from the mean of 1 - 1/30 and 1 - 1/32 on."""
  last = 1 - (1 / 32 + 1 / 30) / 2
  side = lambda n: [statistics.NormalDist().inv_cdf(p) for p in np.linspace(last, 0.5, n + 1)[:-1]]
  values = sorted([-x for x in side(7)] + [0.0] + side(8))
  np.testing.assert_allclose(VALUES, np.array(values) / max(values), atol=2e-7)


@pytest.mark.parametrize(("name", "double", "kernel"), EACH)
def test_a_kernel_comes_back_as_brute_force_has_it(name, double, kernel):
  quantizer, box = make(name, double=double), box_of(kernel)
  exact = np.asarray(box.value, np.float64)
  expected, scales = brute_force(exact, kernel_dims(box.names)[1], GRIDS[name], double)
  found = unpack(quantizer, quantizer.pack(box))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-6)
  # Half of the widest gap, and what a block's largest weight is above a scale that was rounded down.
  above = np.maximum(np.abs(exact) - scales, 0)
  assert (np.abs(found - exact) <= np.diff(GRIDS[name]).max() / 2 * scales + above + 1e-6).all()
  assert np.abs(found - exact).max() > 1e-3 if name == "nf4" else np.abs(found - exact).max() > 1e-4


@pytest.mark.parametrize(("name", "kernel"), [*itertools.product(EVERY, KERNELS)])
def test_double_quantisation_moves_a_scale_by_half_a_step_of_its_output_at_most(name, kernel):
  box = box_of(kernel)
  once, twice = (make(name, double=double).pack(box) for double in (False, True))
  assert once.keys() == {"codes", "scales"} and once["scales"].value.dtype == np.float32
  assert twice["scales"].value.dtype == np.uint8
  tops = np.asarray(twice["tops"].value)
  inputs = kernel_dims(box.names)[1]
  np.testing.assert_array_equal(tops, np.asarray(once["scales"].value).max(inputs, keepdims=True))
  moved = np.abs(np.asarray(twice["scales"].value) / 255 * tops - np.asarray(once["scales"].value))
  assert (moved <= tops / 510 * (1 + 1e-5)).all() and moved.max() > 0


@pytest.mark.parametrize(("name", "double", "kernel"), EACH)
def test_what_stands_for_a_kernel_has_its_dims_and_a_byte_or_half_of_one_for_a_weight(name, double, kernel):
  quantizer, box = make(name, double=double), box_of(kernel)
  packed, bits, inputs = quantizer.pack(box), {"nf4": 4, "int8": 8}[name], kernel_dims(box.names)[1]
  assert packed["codes"].value.nbytes == box.value.size * bits // 8
  assert packed["scales"].value.size == box.value.size // 4
  assert packed["codes"].names == packed["scales"].names == box.names
  if double:
    assert packed["tops"].value.size == box.value.size // np.prod([box.value.shape[dim] for dim in inputs])
    assert [i for i, dim in enumerate(packed["tops"].names) if dim is None] == list(inputs)


@pytest.mark.parametrize(("name", "double"), [*itertools.product(EVERY, (False, True))])
def test_what_the_values_can_say_is_kept_exactly_and_zeros_stay_zeros(name, double):
  quantizer, (shape, names) = make(name, double=double), KERNELS["down"]
  rng = np.random.default_rng(1)
  kernel = rng.choice(GRIDS[name], shape).astype(np.float32)
  kernel[:, ::4] = rng.choice([-1, 1], kernel[:, ::4].shape)  # the largest of each block
  kernel[0] = 0
  kernel[1, 4:8] = 0
  found = unpack(quantizer, quantizer.pack(nn.LogicallyPartitioned(jnp.asarray(kernel), names)))
  np.testing.assert_allclose(found, kernel, atol=1e-7)
  assert not found[0].any() and not found[1, 4:8].any()


def test_a_program_and_a_base_that_is_read_round_to_the_same_bits():
  quantizer, box = make("nf4"), box_of("query")
  inside = jax.jit(lambda box: {name: leaf.value for name, leaf in quantizer.pack(box).items()})(box)
  for name, leaf in quantizer.pack(box).items():
    np.testing.assert_array_equal(inside[name], leaf.value)


def test_alternatives_of_a_pattern_are_all_taken():
  names = ("backbone/blocks/attention/query/kernel", "backbone/blocks/ffn/up/kernel", "backbone/blocks/ffn/down/kernel")
  boxes = {name: box_of("query") for name in names}
  assert make("nf4", targets=".*attention/query|.*ffn/up").find(boxes) == list(names[:2])


@pytest.mark.parametrize(("settings", "words"), [
  ({"peft": "full"}, "quantizer='nf4': peft trains or changes backbone/blocks/attention/key/kernel; accepted are methods that"),
  ({"peft": "partial"}, "quantizer='nf4': peft trains or changes backbone/blocks/"),
  ({"peft": "lora(init=pissa,rank=2)"}, "quantizer='nf4': peft trains or changes backbone/blocks/attention/query/kernel; acc"),
  ({"quantizer": "nf4"}, "quantizer.block=64: must divide the 32 inputs of backbone/blocks/attention/key/kernel"),
  ({"quantizer": "nf4(block=7)"}, "quantizer.block=7: must be even and at least 4"),
  ({"quantizer": "nf4(block=8,targets=conv)"}, "quantizer.targets: pattern 'backbone/(?:conv)/kernel' matches none of the"),
  ({"quantizer": {"name": "int8", "targets": "(.*"}}, "quantizer.targets: '(.*' is no regular expression: missing )"),
  ({"quantizer": "nf5"}, "quantizer 'nf5': unknown; did you mean 'nf4'? There are: int8, nf4"),
])  # fmt: skip
def test_bad_input_is_one_line(settings, words):
  with pytest.raises(ValueError) as raised:
    make_run("classify", **{"peft": "lora", "quantizer": "nf4(block=8)"} | settings)
  assert str(raised.value).startswith(words)
  assert "\n" not in str(raised.value)
