"""Rotary positions (Su et al. 2021): rotate pairs of channels by an angle that grows with the position."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.transformer_config import TransformerConfig

# Llama 3.1 (2024): wavelengths of more than 1/LOW of the original length are stretched, those below 1/HIGH are left alone.
LOW, HIGH = 1.0, 4.0


class Rotation(NamedTuple):
  """Sine, negative in the first half of the channels, and cosine of every position's angles, fp32 [B, T, 1, R]."""

  sin: jax.Array
  cos: jax.Array


def frequencies(cfg: TransformerConfig, kind: str) -> np.ndarray:
  """Radians per position of each pair of channels in a layer of that kind, fp32 [R / 2]."""
  half = cfg.rotary_channels // 2
  base = cfg.local_rope_base if kind == "local" and cfg.local_rope_base else cfg.rope_base
  frequency = base ** (-np.arange(half) / half)
  if kind == "local":
    return frequency.astype(np.float32)
  turns = cfg.rope_original_len * frequency / (2 * math.pi)  # of the circle, over the original length
  kept = np.clip((turns - LOW) / (HIGH - LOW), 0, 1) if cfg.rope_original_len else np.zeros(half)
  return (frequency * (kept + (1 - kept) / cfg.rope_factor)).astype(np.float32)


def rotation(positions_BT: jax.Array, frequency: np.ndarray) -> Rotation:
  """The rotation of every position."""
  angle = positions_BT.astype(jnp.float32)[:, :, None, None] * jnp.asarray(frequency)[None, None, None, :]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  return Rotation(jnp.concatenate([-sin, sin], axis=-1), jnp.concatenate([cos, cos], axis=-1))


def rotate(x_BTHC: jax.Array, by: Rotation) -> jax.Array:
  """Rotates channel c with channel c + R/2 (the half-split form of GPT-NeoX and Llama) for the first R channels, in fp32."""
  size = by.sin.shape[-1]
  x_BTHR, rest = x_BTHC[..., :size].astype(jnp.float32), x_BTHC[..., size:]
  # Whole channels, one half in the other's place: on a TPU halves of 64 channels would fill tiles of 128.
  rotated_BTHR = x_BTHR * by.cos + jnp.roll(x_BTHR, size // 2, axis=-1) * by.sin
  return jnp.concatenate([rotated_BTHR.astype(x_BTHC.dtype), rest], axis=-1)
