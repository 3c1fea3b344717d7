"""The harness itself: its models show every weight and every field of their configs, and it sees one weight that is off."""

import numpy as np
import pytest

from tests.parity import oracle
from tests.parity.agreement import ABSOLUTE, assert_agree, distances, random_tokens
from tests.parity.families import SEEN, UNSEEN, VARIANTS, VOCAB, WINDOW, WRITERS
from tests.parity.make_golden import GOLDEN_DIR, arrays

pytestmark = pytest.mark.parity
TOKENS = random_tokens(np.random.default_rng(0), 3, 5 * WINDOW, vocab=VOCAB)
ALL = np.ones_like(TOKENS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """folder(name): the variant's directory, made once."""
  root = tmp_path_factory.mktemp("variants")

  def find(name):
    if not (root / name).exists():
      oracle.make(name, root / name)
    return root / name

  return find


@pytest.mark.parametrize("name", VARIANTS)
def test_one_weight_that_is_off_is_seen_in_every_tensor(name, folder):
  model = oracle.load(name, folder(name))
  expected, gradients = oracle.outputs(model, TOKENS), oracle.gradients(model, TOKENS)
  unseen = UNSEEN.get(VARIANTS[name].family, "none")
  missed = []
  for key, parameter in model.named_parameters():
    oracle.change_one_weight(parameter, gradients[key], by=1e-2)
    seen = max(distances(oracle.outputs(model, TOKENS), expected, ALL).values()) > 1
    oracle.change_one_weight(parameter, gradients[key], by=-1e-2)
    if seen == key.endswith(unseen):
      missed.append(key)
  assert not missed


CHANGES = [
  pytest.param(name, change, id=f"{name}-{'-'.join(change)}-{i}") for name in SEEN for i, change in enumerate(SEEN[name])
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_every_field_of_the_config_shows(name, change, folder):
  one = oracle.outputs(oracle.load(name, folder(name)), TOKENS)
  other = oracle.outputs(oracle.load(name, folder(name), **change), TOKENS)
  apart = max(float(np.abs(one[key] - other[key]).max()) for key in one)
  assert apart > 10 * ABSOLUTE


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_references_are_clear_and_varied(name, folder):
  _, added = oracle.clear_greedy(oracle.load(name, folder(name)), (5, 12, 1), 64)
  assert [len(row) for row in added] == [64] * 3
  assert max(len(set(row)) for row in added) >= 8


def test_a_missing_or_unknown_parameter_is_refused(folder, tmp_path):
  oracle.load("gpt2-lm", folder("gpt2-lm"))
  model = oracle.load("gpt2-lm", folder("gpt2-lm"))
  tensors = model.state_dict()
  tensors.pop("lm_head.weight")
  tensors["transformer.h.0.unknown"] = tensors.pop("transformer.h.0.ln_1.bias")
  model.save_pretrained(tmp_path, state_dict=tensors)
  with pytest.raises(AssertionError, match=r"missing_keys.*ln_1\.bias.*unexpected_keys.*unknown"):
    oracle.load("gpt2-lm", tmp_path)


def test_what_disagrees_is_named():
  expected = {"hidden_states": np.ones((2, 1, 3, 4)), "logits": np.ones((1, 3, 5))}
  mask = np.array([[1, 1, 0]])
  got = {key: value.copy() for key, value in expected.items()}
  got["logits"][0, 2] = 7  # padding
  assert_agree(got, expected, mask)
  got["hidden_states"][1, 0, 1, 2] += 5e-5
  with pytest.raises(AssertionError, match=r"{'hidden_states\[1\]': 5.0}"):
    assert_agree(got, expected, mask)
  got["hidden_states"][1, 0, 1, 2] = np.nan
  with pytest.raises(AssertionError, match=r"hidden_states\[1\] is not finite"):
    assert_agree(got, expected, mask)
  with pytest.raises(AssertionError, match="logits is missing"):
    assert_agree({"hidden_states": expected["hidden_states"]}, expected, mask)
  with pytest.raises(AssertionError, match="has the shape"):
    assert_agree(expected | {"logits": np.ones((1, 3))}, expected, mask)


@pytest.mark.parametrize("path", sorted(GOLDEN_DIR.iterdir()), ids=lambda path: path.name)
def test_golden_files_are_what_transformers_computes(path):
  found = arrays(path.name, oracle.load(path.name, path))
  with np.load(path / "expected.npz") as kept:
    assert set(found) == set(kept)
    for key in kept:
      # torch's products round otherwise on another processor: 1.4e-5 was seen.
      np.testing.assert_allclose(found[key], kept[key], atol=2e-5, err_msg=key)
