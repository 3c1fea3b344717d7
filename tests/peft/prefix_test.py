"""Prefix tuning: who sees the prefix, that rows stay as long as they are, and that a trained run is used as it is."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import convert, saved, train, tree
from lm.config import ConfigError
from lm.infer.generate import Sampler, generate
from lm.models.cache import make_cache
from lm.peft.prefix import Prefix
from tests.conftest import LABELS, SIZES, TEXTS, make_run
from tests.infer.generate_test import EOS, slow_greedy
from tests.models.transformer_test import hidden, init, make_inputs, make_model, output, random_tokens

# Local layers among global ones: with grouped keys and a soft cap, and in both directions.
FAMILIES = ["gemma-2-2b", "modernbert-base"]


def make_tuned(name, **changes):
  """A random model with a prefix that weighs as much as the tokens."""
  model = dataclasses.replace(make_model(name, dropout_rate=0.0, **changes), tuner=Prefix(num_prefix=3, init_stddev=1.0))
  return model, init(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_query_of_every_segment_sees_every_key_of_every_layer(name):
  model, params = make_tuned(name)
  inputs = make_inputs(random_tokens(2, 9), [[1] * 4 + [2] * 5] * 2)
  leaves, rest = tree.split(params, lambda name: "/prefix/" in name)

  @jax.jit
  @jax.grad
  def gradient(leaves, t):
    return model.hidden(tree.merge(leaves, rest), inputs).hidden_BTD[0, t, 0]

  for t in (0, 3, 4, 8):
    for name, d_LPKC in tree.flatten(gradient(leaves, t)).items():
      assert d_LPKC.shape == (2, 3, model.cfg.kv_heads, model.cfg.channels), name
      assert (jnp.abs(d_LPKC).max(-1) > 0).all(), name


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_documents_equal_separate_ones(name):
  model, params = make_tuned(name)
  first, second = random_tokens(2, 6)
  packed = make_inputs([[*first, *second[:4], 0, 0]], [[1] * 6 + [2] * 4 + [0] * 2])
  packed["positions"] = jnp.asarray([[*range(6), *range(4), 0, 0]])
  h_BTD = hidden(model, params, packed)
  np.testing.assert_allclose(h_BTD[0, :6], hidden(model, params, make_inputs([first]))[0], atol=1e-5)
  np.testing.assert_allclose(h_BTD[0, 6:10], hidden(model, params, make_inputs([second[:4]]))[0], atol=1e-5)


@pytest.mark.parametrize("name", ["gemma-2-2b", "llama-3-8b"])
def test_cached_decoding_equals_the_full_forward(name):
  model, params = make_tuned(name)
  inputs = make_inputs(random_tokens(2, 9))
  full, plain = hidden(model, params, inputs), hidden(dataclasses.replace(model, tuner=None), params, inputs)
  cache, parts = make_cache(model.cfg, 2, 12, jnp.float32), []
  for start, stop in ((0, 5), (5, 6), (6, 9)):
    part = {key: value[:, start:stop] if value.ndim == 2 else value for key, value in inputs.items()}
    out = output(model, params, part, cache=cache)
    cache = out.cache
    parts.append(out.hidden_BTD)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-5)
  assert jnp.abs(full - plain).max() > 0.1


def test_generation_equals_the_full_forward_for_prompts_of_any_length():
  model, params = make_tuned("gpt2-tiny", init_stddev=0.5)
  prompts = [[7, 8, 9, 10, 11], [12]]
  out = generate(model, params, prompts, EOS, Sampler(temperature=0, max_new_tokens=8))
  assert out == [slow_greedy(model, params, prompt, 8) for prompt in prompts]
  assert out != [slow_greedy(dataclasses.replace(model, tuner=None), params, prompt, 8) for prompt in prompts]


@pytest.mark.parametrize("settings", [{"remat": "block"}, {"scan_unroll": 2}, {"tokens_per_device": 128}], ids=str)
def test_losses_do_not_depend_on_how_they_are_computed(settings):
  def losses(**settings):
    run = make_run(peft="prefix(num_prefix=3, init_stddev=1.0)", **settings)
    run.program.compile(run.loader.shapes(), [])
    state, found = run.init_state(), []
    for step in range(3):
      state, metrics = run.program.train(state, run.loader.batch(step), run.noise_rng)
      found.append(float(metrics["loss"]))
    return found

  np.testing.assert_allclose(losses(**settings), losses(), atol=1e-5)


@pytest.mark.parametrize("based", [True, False])
def test_a_run_is_used_as_it_was_evaluated(based, tmp_path):
  settings = {"peft": "prefix(num_prefix=4, init_stddev=0.5)", "total_steps": 4}
  if based:
    train.train(make_run("mlm", total_steps=2, checkpoint_every=1), tmp_path / "base")
    settings |= {"model": None, "tokenizer": "", "init_from": str(tmp_path / "base")}
  summary = train.train(make_run("classify", **settings), tmp_path / "tuned")
  model = lm.load(tmp_path / "tuned")
  found = model.predict(TEXTS)
  loss = -np.mean([math.log(row["scores"][label]) for row, label in zip(found, LABELS, strict=True)])
  assert loss == pytest.approx(summary["metrics"]["eval/validation/loss"], abs=1e-5)
  plain = dataclasses.replace(model, model=dataclasses.replace(model.model, tuner=None))
  assert np.abs(model.embed(TEXTS[:2]) - plain.embed(TEXTS[:2])).max() > 1e-2
  assert lm.load(tmp_path / "tuned").model == model.model
  assert saved.load_model(tmp_path / "tuned")[0].tuner == Prefix(num_prefix=4, init_stddev=0.5)


def test_what_would_merge_says_that_it_cannot(tmp_path):
  train.train(make_run(peft="prefix", total_steps=1), tmp_path / "tuned")
  assert lm.load(tmp_path / "tuned").score(TEXTS[:2])[0]["num_tokens"] == len(TEXTS[0].encode()) + 1
  follow = {"model": None, "tokenizer": "", "init_from": str(tmp_path / "tuned")}
  for call in (
    lambda: make_run(**follow),
    lambda: convert.export_checkpoint(str(tmp_path / "tuned"), tmp_path / "out"),
    lambda: convert.export_adapter(str(tmp_path / "tuned"), tmp_path / "out"),
  ):
    with pytest.raises(ConfigError, match="peft='prefix'") as raised:
      call()
    assert "\n" not in str(raised.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["num_prefix=0", "init_stddev=0"])
def test_bad_options_are_named(option):
  with pytest.raises(ConfigError, match=f"^peft.{option.split('=')[0]}=0.*: must be"):
    make_run(peft=f"prefix({option})")


def test_positions_that_the_prefix_takes_are_missing_at_the_end():
  settings = {"peft": "prefix(num_prefix=70)", "seq_len": 64}
  with pytest.raises(ConfigError, match=r"^config.seq_len=64: the model has 128 positions .* of which peft='prefix' takes 70$"):
    make_run("mlm", model={"name": "bert-base-uncased", **SIZES, "vocab_size": 0}, **settings)
  make_run("mlm", **settings)  # rotary ones go on
