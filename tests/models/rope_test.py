"""Rotary positions against their definition: which channels turn, by what angle, and which wavelengths are stretched."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lm import plug
from lm.models import rope


def config(**changes):
  sizes = {"model_dim": 32, "num_heads": 2, "num_kv_heads": 0, "head_dim": 0, "rope_factor": 1.0, "rope_original_len": 0}
  return dataclasses.replace(plug.preset("llama-3.1-8b"), **sizes | {"rope_base": 100.0} | changes)


def turned(cfg, x, position):
  """A head's channels [C] at a position, in complex numbers of float64."""
  half = cfg.rotary_channels // 2
  z = (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * position * rope.frequencies(cfg, "global").astype(np.float64))
  return np.concatenate([z.real, z.imag, x[2 * half :]])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_pairs_of_channels_turn_and_the_rest_stays(share):
  cfg, rng = config(rope_share=share), np.random.default_rng(0)
  x, positions = rng.normal(size=(1, 3, 2, 16)), np.asarray([[0, 5, 40]])
  found = rope.rotate(jnp.asarray(x, jnp.float32), rope.rotation(jnp.asarray(positions), rope.frequencies(cfg, "global")))
  expected = [[turned(cfg, x[0, t, head], positions[0, t]) for head in range(2)] for t in range(3)]
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
  assert cfg.rotary_channels == 16 * share


def test_a_share_that_is_no_even_number_is_refused():
  with pytest.raises(ValueError, match="an even number must rotate"):
    config(rope_share=0.2)


def test_local_layers_have_their_own_base_and_are_not_stretched():
  cfg = config(local_rope_base=10.0, rope_factor=4.0, layer_pattern=("local", "global"), window=4)
  np.testing.assert_allclose(rope.frequencies(cfg, "local"), 10.0 ** (-np.arange(8) / 8), rtol=1e-6)
  np.testing.assert_allclose(rope.frequencies(cfg, "global"), 100.0 ** (-np.arange(8) / 8) / 4, rtol=1e-6)


def test_only_wavelengths_too_long_for_the_original_length_are_stretched():
  cfg = config(rope_factor=8.0, rope_original_len=64)
  plain = 100.0 ** (-np.arange(8) / 8)
  stretch = plain / rope.frequencies(cfg, "global")
  turns = 64 * plain / (2 * np.pi)
  np.testing.assert_allclose(stretch[turns > rope.HIGH], 1, rtol=1e-6)
  np.testing.assert_allclose(stretch[turns < rope.LOW], 8, rtol=1e-6)
  assert ((stretch > 1.001) & (stretch < 7.999)).sum() == ((turns > rope.LOW) & (turns < rope.HIGH)).sum() > 0
