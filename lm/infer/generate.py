"""Sampling from an autoregressive model with a key-value cache: one compiled prefill, one compiled loop of single steps."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm import layout
from lm.models.cache import make_cache
from lm.models.model import Model


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How tokens are drawn, and how many at most. Temperature 0 is greedy; top_k 0 and top_p 1 leave all tokens in.

  prompt_is_prefix: prompts are seen in both directions, as a prefix language model is trained.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  max_new_tokens: int = 64
  prompt_is_prefix: bool = False

  def __post_init__(self):
    if self.temperature < 0:
      raise ValueError(f"temperature={self.temperature}: must not be negative")
    if self.top_k < 0:
      raise ValueError(f"top_k={self.top_k}: must not be negative")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
    if self.max_new_tokens < 1:
      raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")

  def filter(self, logits_BV: jax.Array) -> jax.Array:
    """Logits after temperature, with -inf for tokens outside the top k or the smallest set of probability top_p."""
    logits_BV = logits_BV / max(self.temperature, 1e-6)
    if self.top_k:
      kth = jax.lax.top_k(logits_BV, min(self.top_k, logits_BV.shape[-1]))[0][:, -1:]
      logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
    if self.top_p < 1:
      ranked = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
      before = jnp.cumsum(jax.nn.softmax(ranked), axis=-1) - jax.nn.softmax(ranked)
      last = jnp.min(jnp.where(before < self.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
      logits_BV = jnp.where(logits_BV < last, -jnp.inf, logits_BV)
    return logits_BV

  def draw(self, rng: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """One token per row."""
    if self.temperature == 0:
      return jnp.argmax(logits_BV, axis=-1)
    return jax.random.categorical(rng, self.filter(logits_BV), axis=-1)


def generate(
  model: Model, params: dict, prompts: Sequence[Sequence[int]], eos_id: int, sampler: Sampler, seed: int = 0
) -> list[list[int]]:
  """Continues every prompt until `eos_id` (left out of the result) or `sampler.max_new_tokens`.

  Prompts of different length share a batch: they are padded on the left, in a segment of their own.

  Raises:
    ValueError: an empty prompt, or more tokens than the model's positions.
  """
  lengths = [len(prompt) for prompt in prompts]
  if not lengths or min(lengths) == 0:
    raise ValueError("prompt: empty; give at least one token")
  # Prompts are padded to a multiple of 32 tokens, so that few lengths are compiled.
  width = -(-max(lengths) // 32) * 32
  longest = max(lengths) + sampler.max_new_tokens
  if longest > model.max_len:
    raise ValueError(f"prompt and max_new_tokens={sampler.max_new_tokens}: {longest} tokens, the model takes {model.max_len}")
  tokens_BT = np.zeros((len(prompts), width), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BT[row, width - len(prompt) :] = prompt
  pad_B = np.asarray([width - n for n in lengths], np.int32)
  out_BN = _generate(model, sampler, eos_id, params, tokens_BT, pad_B, jax.random.key(seed))
  return [_until(row.tolist(), eos_id) for row in np.asarray(out_BN)]


def _until(tokens: list[int], end: int) -> list[int]:
  return tokens[: tokens.index(end)] if end in tokens else tokens


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(model: Model, sampler: Sampler, eos_id: int, params, tokens_BT, pad_B, rng) -> jax.Array:
  B, T = tokens_BT.shape
  num_new = sampler.max_new_tokens
  rows_B = jnp.arange(B)
  params = model.as_read(params)

  def forward(tokens, first, cache, is_prefix=False):
    """Last position's logits after feeding tokens that start at slot `first`."""
    slots = jnp.broadcast_to((first + jnp.arange(tokens.shape[1]))[None, :], tokens.shape)
    inputs = {
      "tokens": tokens,
      "segment_ids": (slots >= pad_B[:, None]).astype(jnp.int32),
      "positions": jnp.maximum(slots - pad_B[:, None], 0),
      "row": rows_B,
    }
    if is_prefix:
      inputs["prefix"] = inputs["segment_ids"]
    out = model.hidden(params, inputs, cache=cache)
    return model.logits(params, "lm", out.hidden_BTD[:, -1], rows_B), out.cache

  def step(carry):
    i, done_B, logits_BV, cache, out_BN = carry
    token_B = sampler.draw(jax.random.fold_in(rng, i), logits_BV)
    token_B = jnp.where(done_B, eos_id, token_B).astype(jnp.int32)
    out_BN = out_BN.at[:, i].set(token_B)
    logits_BV, cache = forward(token_B[:, None], T + i, cache)
    return i + 1, done_B | (token_B == eos_id), logits_BV, cache, out_BN

  cache = make_cache(model.cfg, B, T + num_new, jnp.dtype(model.dtype))
  logits_BV, cache = forward(tokens_BT, 0, cache, sampler.prompt_is_prefix)
  if layout.platform() == "cpu" and model.quantizer is None:  # from here on `forward` reads these
    model, params, cache = model.apart(params, cache)
  start = (jnp.int32(0), jnp.zeros(B, bool), logits_BV, cache, jnp.full((B, num_new), eos_id, jnp.int32))
  return jax.lax.while_loop(lambda carry: (carry[0] < num_new) & ~carry[1].all(), step, start)[-1]
