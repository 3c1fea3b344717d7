"""Every family read from and written for transformers: the same hidden states, logits and greedy tokens, in fp32."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from lm.infer.generate import Sampler, generate
from lm.interop import load_pretrained, save_pretrained
from lm.models.cache import make_cache
from tests.parity import oracle
from tests.parity.agreement import assert_agree, distances, pad, random_tokens
from tests.parity.families import DECODERS, LABELLED, NAMES, VARIANTS, VOCAB, WINDOW, WRITERS, Variant

pytestmark = pytest.mark.parity
LENGTHS = (5 * WINDOW, 3 * WINDOW - 1, WINDOW - 1)  # past the window, and within it
NO_TOKEN = -1  # as eos_id: nothing ends a row


@dataclasses.dataclass(frozen=True)
class Case:
  """One variant on both sides."""

  name: str
  variant: Variant
  directory: Path
  model: Any  # of transformers
  pretrained: Any

  def expect(self, *inputs) -> dict[str, np.ndarray]:
    """What transformers gives."""
    return oracle.outputs(self.model, *inputs)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, tmp_path_factory) -> Case:
  directory = tmp_path_factory.mktemp(request.param)
  oracle.make(request.param, directory)
  return Case(
    request.param, VARIANTS[request.param], directory, oracle.load(request.param, directory), load_pretrained(directory)
  )


def of(*names: str):
  """Only for these variants."""
  return pytest.mark.parametrize("case", names, indirect=True)


def rows():
  rng = np.random.default_rng(1)
  return [random_tokens(rng, n, vocab=VOCAB) for n in LENGTHS]


def full_rows():
  return random_tokens(np.random.default_rng(2), 3, LENGTHS[0], vocab=VOCAB)


def test_full_rows_past_the_window(case):
  tokens = full_rows()
  expected = case.expect(tokens)
  assert ("pooled" if case.variant.kind == "encoder" else "logits") in expected
  assert_agree(case.pretrained.run(tokens), expected, np.ones_like(tokens))


def test_padding_on_the_right(case):
  tokens, mask, _ = pad(rows())
  assert_agree(case.pretrained.run(tokens, attention_mask=mask), case.expect(tokens, mask), mask)


@of(*DECODERS)
def test_padding_on_the_left(case):
  tokens, mask, positions = pad(rows(), "left")
  got = case.pretrained.run(tokens, attention_mask=mask, positions=positions)
  assert_agree(got, case.expect(tokens, mask, positions), mask)


def test_packed_documents_equal_separate_ones(case):
  cuts = (17, 23, 36)
  tokens, columns = full_rows(), np.arange(LENGTHS[0])[None, :]
  second = columns >= np.array(cuts)[:, None]
  got = case.pretrained.run(tokens, segment_ids=1 + second, positions=columns - second * np.array(cuts)[:, None])
  per_token = ["hidden_states"] + ["logits"] * (case.variant.kind in ("causal", "mlm", "tagger", "span"))
  for row, cut in enumerate(cuts):
    for document in (slice(0, cut), slice(cut, LENGTHS[0])):
      expected = case.expect(tokens[row : row + 1, document])
      here = {name: got[name][..., row : row + 1, document, :] for name in per_token}
      assert_agree(here, {name: expected[name] for name in per_token}, np.ones_like(tokens[row : row + 1, document]))


@of(*DECODERS)
def test_decoding_with_a_cache_equals_the_full_forward_of_transformers(case):
  tokens = full_rows()
  B, T = tokens.shape
  model, params = case.pretrained.model, case.pretrained.params
  inputs = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.tile(np.arange(T), (B, 1))}
  inputs = {key: jnp.asarray(value, jnp.int32) for key, value in inputs.items()}
  cache, parts = make_cache(model.cfg, B, T + 4, jnp.float32), []
  for start, stop in ((0, 20), (20, 21), (21, T)):
    part = {key: value[:, start:stop] for key, value in inputs.items()} | {"row": jnp.arange(B)}
    out = jax.jit(model.hidden)(params, part, cache=cache)
    cache = out.cache
    parts.append(out.hidden_BTD)
  expected = {"hidden_states": case.expect(tokens)["hidden_states"][-1:]}
  assert_agree({"hidden_states": np.concatenate(parts, axis=1)[None]}, expected, np.ones_like(tokens))


@of(*WRITERS)
def test_64_greedy_tokens_of_prompts_of_different_lengths(case):
  prompts, added = oracle.clear_greedy(case.model, (5, 12, 1), 64)
  got = generate(case.pretrained.model, case.pretrained.params, prompts, NO_TOKEN, Sampler(temperature=0, max_new_tokens=64))
  assert got == added


def test_what_is_written_is_read_by_transformers(case, tmp_path):
  save_pretrained(case.pretrained, tmp_path)
  exported = oracle.load(case.name, tmp_path)  # every parameter is there, and no other
  assert type(exported) is type(case.model)
  ours, theirs = exported.state_dict(), case.model.state_dict()
  assert [key for key in theirs if not ours[key].equal(theirs[key])] == []
  tokens, mask, _ = pad(rows())
  assert_agree(oracle.outputs(exported, tokens, mask), case.expect(tokens, mask), mask)


@of(*LABELLED)
def test_labels_go_both_ways(case, tmp_path):
  names = NAMES[case.variant.kind]
  assert case.pretrained.labels == tuple(names.values())
  save_pretrained(case.pretrained, tmp_path)
  assert transformers.AutoConfig.from_pretrained(tmp_path).id2label == names


def test_one_weight_that_is_off_is_seen(case, tmp_path):
  tokens = full_rows()
  expected, gradients = case.expect(tokens), oracle.gradients(case.model, tokens)
  name, parameter = list(case.model.named_parameters())[-3]
  oracle.change_one_weight(parameter, gradients[name], by=1e-2)
  case.model.save_pretrained(tmp_path)
  oracle.change_one_weight(parameter, gradients[name], by=-1e-2)
  assert max(distances(load_pretrained(tmp_path).run(tokens), expected, np.ones_like(tokens)).values()) > 1
