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
  """Sine and cosine of every position's angles, fp32 [B, T, 1, R / 2] for R channels that rotate."""

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
  return Rotation(jnp.sin(angle), jnp.cos(angle))


def rotate(x_BTHC: jax.Array, by: Rotation) -> jax.Array:
  """Rotates channel c with channel c + R/2 (the half-split form of GPT-NeoX and Llama) for the first R channels, in fp32."""
  half = by.sin.shape[-1]
  x = x_BTHC.astype(jnp.float32)
  first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
  rotated = (first * by.cos - second * by.sin, second * by.cos + first * by.sin, rest)
  return jnp.concatenate(rotated, axis=-1).astype(x_BTHC.dtype)
