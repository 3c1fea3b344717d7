"""Prompt tuning: a prompt of words is those words, where it starts, and that a trained run is used as it is."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import convert, saved, train
from lm.config import ConfigError
from lm.data.reserve import virtual_ids
from lm.data.tokenizer import Bytes
from lm.infer.generate import Sampler, generate
from lm.interop import load_pretrained
from lm.peft.prompt import Prompt
from lm.shapes import INPUTS
from lm.tasks.forward import pool
from tests.conftest import LABELS, SIZES, TEXTS, make_run
from tests.infer.generate_test import EOS, slow_greedy
from tests.models.transformer_test import hidden, init, make_inputs, make_model, random_tokens

WORDS = [7, 11, 13]


def make_tuned(name, **changes):
  """A random model with a prompt that is three of its own words."""
  tuner = Prompt(num_virtual_tokens=3, init="text", init_ids=tuple(WORDS))
  model = dataclasses.replace(make_model(name, dropout_rate=0.0, **changes), tuner=tuner)
  return model, init(model)


@pytest.mark.parametrize("name", ["gemma-2-2b", "bert-tiny"])  # embeddings that are scaled; token types and a norm
def test_a_prompt_of_words_is_those_words(name):
  model, params = make_tuned(name)
  text = random_tokens(2, 6)
  in_front = lambda ids: make_inputs(np.concatenate([np.tile(ids, (2, 1)), text], axis=1))
  got, expected = hidden(model, params, in_front(virtual_ids(3))), hidden(model, params, in_front(WORDS))
  np.testing.assert_allclose(got, expected, atol=1e-6)
  assert jnp.abs(got - hidden(model, params, in_front([0, 0, 0]))).max() > 1e-2


def test_generation_with_a_prompt_is_that_behind_its_words():
  model, params = make_tuned("gpt2-tiny", init_stddev=0.5)
  prompts = [[7, 8, 9, 10, 11], [12]]
  sampler = Sampler(temperature=0, max_new_tokens=8)
  out = generate(model, params, [[*virtual_ids(3).tolist(), *prompt] for prompt in prompts], EOS, sampler)
  assert out == [slow_greedy(model, params, [*WORDS, *prompt], 8) for prompt in prompts]


def attached(peft):
  """The prompt [P, D] and the table [V, D] right after `attach`."""
  boxed = jax.jit(make_model("gpt2-tiny").init)(jax.random.key(0))
  embed = nn.unbox(peft.attach(boxed, jax.random.key(1)))["backbone"]["embed"]
  return np.asarray(embed["prompt"]["default"]["embedding"]), np.asarray(embed["embedding"])


def test_it_starts_from_words_rows_or_numbers_of_their_size():
  text, table = attached(Prompt(num_virtual_tokens=5, init="text", init_ids=tuple(WORDS)))
  np.testing.assert_array_equal(text, table[[7, 11, 13, 7, 11]])
  rows, _ = attached(Prompt(num_virtual_tokens=20))
  assert all((row == table).all(1).any() for row in rows) and len(np.unique(rows, axis=0)) > 10
  drawn, _ = attached(Prompt(num_virtual_tokens=40, init="random"))
  assert not any((row == table).all(1).any() for row in drawn)
  assert drawn.std() == pytest.approx(table.std(), rel=0.1)


def test_text_is_read_by_the_runs_tokenizer():
  peft = make_run(peft="prompt(num_virtual_tokens=4, init=text, init_text='Sort: ')").program.spec.peft
  assert peft.init_ids == tuple(Bytes().encode("Sort: "))


def test_pooling_passes_over_reserved_positions():
  inputs = {"tokens": jnp.asarray([[-1, -2, 5, 6, 7, 0]]), "segment_ids": jnp.asarray([[1, 1, 1, 1, 1, 0]])}
  h_BTD = jnp.arange(6.0)[None, :, None]
  assert {how: float(pool(h_BTD, inputs, how)[0, 0]) for how in ("first", "last", "mean")} == {
    "first": 2.0, "last": 4.0, "mean": 3.0,
  }  # fmt: skip


def test_every_embedding_of_the_prompt_learns_and_no_row_of_the_table_from_its_positions():
  run = make_run(peft="prompt(num_virtual_tokens=4)", model={"name": "gpt2-tiny", **SIZES, "tied": False})
  spec, batch = run.program.spec, run.loader.batch(0)
  params = jax.jit(lambda rng: nn.unbox(spec.peft.attach(spec.model.init(rng), rng)))(jax.random.key(0))
  (loss,) = spec.objective.coefficients
  gradient = jax.jit(jax.grad(lambda params: spec.objective.sums(params, batch)[loss]))(params)["backbone"]["embed"]
  moves = lambda rows: np.flatnonzero(np.abs(rows).max(1) > 0).tolist()
  tokens = batch[INPUTS]["tokens"][batch[INPUTS]["segment_ids"] > 0]
  assert moves(gradient["prompt"]["default"]["embedding"]) == [0, 1, 2, 3]
  assert moves(gradient["embedding"]) == sorted(set(tokens[tokens >= 0].tolist()))
  assert 0 not in tokens  # the row that a lookup without a prompt would read


@pytest.mark.parametrize("based", [True, False])
def test_a_run_is_used_as_it_was_evaluated(based, tmp_path):
  settings = {"peft": "prompt(num_virtual_tokens=3, init=text, init_text=sort)", "total_steps": 4}
  if based:
    train.train(make_run("mlm", total_steps=2, checkpoint_every=1), tmp_path / "base")
    settings |= {"model": None, "tokenizer": "", "init_from": str(tmp_path / "base")}
  summary = train.train(make_run("classify", **settings), tmp_path / "tuned")
  model = lm.load(tmp_path / "tuned")
  found = model.predict(TEXTS)
  loss = -np.mean([math.log(row["scores"][label]) for row, label in zip(found, LABELS, strict=True)])
  assert loss == pytest.approx(summary["metrics"]["eval/validation/loss"], abs=1e-5)
  assert saved.load_model(tmp_path / "tuned")[0] == model.model


def test_scores_and_outputs_are_those_of_the_words(tmp_path):
  """A run whose prompt does not move: its answers are those of its backbone with the words in front."""
  settings = {"peft": "prompt(num_virtual_tokens=4, init=text, init_text=Sort)", "optimizer": "sgd(learning_rate=1e-30)"}
  train.train(make_run(total_steps=1, **settings), tmp_path / "tuned")
  model, here = lm.load(tmp_path / "tuned"), load_pretrained(tmp_path / "tuned")
  text = TEXTS[0]
  tokens = np.asarray([[Bytes().bos_id, *Bytes().encode(text), Bytes().eos_id]])
  words = np.asarray([Bytes().encode("Sort")])
  plain = dataclasses.replace(here, model=dataclasses.replace(here.model, tuner=None))
  expected = plain.run(np.concatenate([words, tokens], axis=1))
  got = here.run(tokens)
  assert got["logits"].shape[1] == tokens.shape[1]
  np.testing.assert_allclose(got["logits"], expected["logits"][:, 4:], atol=1e-5)
  np.testing.assert_allclose(got["hidden_states"], expected["hidden_states"][:, :, 4:], atol=1e-5)
  logp = jax.nn.log_softmax(expected["logits"][0, 4:-1])
  assert model.score([text])[0]["num_tokens"] == tokens.shape[1] - 1
  assert model.score([text])[0]["log_likelihood"] == pytest.approx(
    float(jnp.take_along_axis(logp, tokens[0, 1:, None], axis=1).sum()), rel=1e-5
  )
  packed = here.run(np.concatenate([tokens, tokens], axis=1), segment_ids=np.repeat([[1, 2]], tokens.shape[1], axis=1))
  np.testing.assert_allclose(packed["logits"], np.tile(got["logits"], (1, 2, 1)), atol=1e-5)
  padded = here.run(np.pad(tokens, ((0, 0), (3, 0))), attention_mask=np.pad(np.ones_like(tokens), ((0, 0), (3, 0))))
  np.testing.assert_allclose(padded["logits"][:, 3:], got["logits"], atol=1e-5)
  long = "x" * 200
  assert model.score([long])[0]["num_tokens"] == 201
  with pytest.raises(ConfigError, match="peft='prompt'"):
    convert.export_checkpoint(str(tmp_path / "tuned"), tmp_path / "out")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ("num_virtual_tokens=0", "peft.num_virtual_tokens=0: must be at least 1"),
    ("init=zeros", "peft.init='zeros': accepted are vocab, text, random"),
    ("init=text", "peft.init_text: not set"),
    ("init_text=a", "peft.init_text='a': is read with peft.init='text' only"),
    ("init=text, init_ids=[999]", "peft.init_ids: has 999, accepted are 0 to"),
    ("num_virtual_tokens=64", "config.seq_len=64: one token of this task takes 65 positions"),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ConfigError) as raised:
    make_run(peft=f"prompt({options})").program.abstract  # noqa: B018
  assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
