"""Rotary positions (Su et al. 2021): rotate pairs of channels by an angle that grows with the position."""

import jax
import jax.numpy as jnp


def rotate(x_BTHC: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
  """Rotates channel c with channel c + C/2 (the half-split form of GPT-NeoX and Llama), in fp32."""
  half = x_BTHC.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
  sin, cos = jnp.sin(angle), jnp.cos(angle)
  first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BTHC.dtype)
