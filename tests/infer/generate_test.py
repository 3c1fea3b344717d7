"""Sampling: greedy equals the full forward, filters keep what they say, rows do not disturb each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.infer.generate import Sampler, generate
from tests.models.transformer_test import init, make_inputs, make_model

EOS = 3


@pytest.fixture(scope="module")
def trained():
  model = make_model("gpt2-tiny", init_stddev=0.5)
  return model, init(model)


def slow_greedy(model, params, prompt, count):
  """The whole row anew for every token; what stands behind the last one cannot be seen, so one length is compiled."""

  @jax.jit
  def likeliest(inputs):
    return jnp.argmax(model.logits(params, "lm", model.hidden(params, inputs)[0], inputs["row"]), axis=-1)

  tokens = list(prompt)
  for _ in range(count):
    row = make_inputs([tokens + [0] * (len(prompt) + count - len(tokens))])
    tokens.append(int(likeliest(row)[0, len(tokens) - 1]))
    if tokens[-1] == EOS:
      break
  return [t for t in tokens[len(prompt) :] if t != EOS]


def test_greedy_with_cache_equals_the_full_forward_for_prompts_of_any_length(trained):
  model, params = trained
  prompts = [[7, 8, 9, 10, 11], [12], [20, 21]]
  out = generate(model, params, prompts, EOS, Sampler(temperature=0, max_new_tokens=12))
  assert out == [slow_greedy(model, params, prompt, 12) for prompt in prompts]


def test_kernels_are_converted_once_for_all_tokens(trained):
  """In bfloat16 each step reads half the bytes, and what is written is what the full forward pass gives in it."""
  model, params = trained
  half = dataclasses.replace(model, dtype="bfloat16")
  prompts = [[7, 8, 9, 10, 11], [12]]
  out = generate(half, params, prompts, EOS, Sampler(temperature=0, max_new_tokens=6))
  assert out == [slow_greedy(half, params, prompt, 6) for prompt in prompts]
  moe = dataclasses.replace(make_model("gpt2-tiny", num_experts=2, experts_per_token=1), dtype="bfloat16")
  types = {name: leaf.dtype.name for name, leaf in tree.flatten(moe.as_read(init(moe))).items()}
  wide = {name for name, dtype in types.items() if dtype == "float32"}
  assert wide == {name for name in types if "/router/" in name or name.endswith(("/scale", "/bias"))}
  assert any("/router/" in name for name in wide)
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, model.as_read(params), params))


def test_filters():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
  kept = lambda **options: np.isfinite(np.asarray(Sampler(**options).filter(logits)))[0].tolist()
  assert kept(top_k=2) == [True, True, False, False]
  assert kept(top_p=0.6) == [True, True, False, False]
  assert kept(top_p=0.4) == [True, False, False, False]
  assert kept() == [True] * 4


def test_seed_decides_the_sample(trained):
  model, params = trained
  draw = lambda seed: generate(model, params, [[7, 8]], EOS, Sampler(max_new_tokens=12, temperature=2.0), seed)
  assert draw(1) == draw(1)
  assert draw(1) != draw(2)


def test_too_long_or_empty_is_refused(trained):
  model, params = trained
  with pytest.raises(ValueError, match="tokens, the model takes 64"):
    generate(model, params, [[1] * 60], EOS, Sampler(max_new_tokens=10))
  with pytest.raises(ValueError, match="empty"):
    generate(model, params, [[]], EOS, Sampler())
  with pytest.raises(ValueError, match="top_p"):
    Sampler(top_p=0)


def test_temperature_divides_the_logits():
  logits = jnp.array([[1.0, 2.0, 4.0]])
  np.testing.assert_allclose(Sampler(temperature=2.0).filter(logits), logits / 2)


def test_every_token_is_drawn_anew():
  model = make_model("gpt2-tiny", init_stddev=1e-3)  # whose next token is any one, whatever came before
  (out,) = generate(model, init(model), [[7]], 50, Sampler(max_new_tokens=12))
  assert len(set(out)) > 4


def test_a_prompt_that_is_a_prefix_is_seen_in_both_directions(trained):
  model, params = trained
  prompts, sampler = [[7, 8, 9, 10, 11], [12, 13]], Sampler(temperature=0, max_new_tokens=6, prompt_is_prefix=True)

  @jax.jit
  def likeliest(inputs):
    return jnp.argmax(model.logits(params, "lm", model.hidden(params, inputs)[0], inputs["row"]), axis=-1)

  def slow(prompt):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + 6 and tokens[-1] != EOS:
      inputs = make_inputs([tokens + [0] * (11 - len(tokens))])
      prefix_BT = (np.arange(11) < len(prompt)).astype(np.int32)[None]
      tokens.append(int(likeliest(inputs | {"prefix": prefix_BT})[0, len(tokens) - 1]))
    return [token for token in tokens[len(prompt) :] if token != EOS]

  out = generate(model, params, prompts, EOS, sampler)
  assert out == [slow(prompt) for prompt in prompts]
  assert out != generate(model, params, prompts, EOS, Sampler(temperature=0, max_new_tokens=6))
