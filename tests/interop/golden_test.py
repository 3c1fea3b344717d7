"""Models that transformers wrote, beside what it computed with them: read, run, written and read again, without torch.

`python -m tests.parity.make_golden` writes them.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lm.infer.generate import Sampler, generate
from lm.interop import load_pretrained, save_pretrained
from tests.parity.agreement import assert_agree
from tests.parity.families import GOLDEN, VARIANTS, WRITERS

GOLDEN_DIR = Path(__file__).parent.parent / "golden" / "parity"


def read(name):
  """The model, and the arrays beside it."""
  with np.load(GOLDEN_DIR / name / "expected.npz") as arrays:
    return load_pretrained(GOLDEN_DIR / name), dict(arrays)


def test_every_family_has_a_model():
  assert {VARIANTS[name].family for name in GOLDEN} == {variant.family for variant in VARIANTS.values()}
  assert sorted(path.name for path in GOLDEN_DIR.iterdir()) == sorted(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_it_computes_what_transformers_computed(name):
  pretrained, arrays = read(name)
  expected = {key: arrays[key] for key in ("hidden_states", "logits", "pooled") if key in arrays}
  mask = arrays["attention_mask"]
  assert_agree(pretrained.run(arrays["tokens"], attention_mask=mask), expected, mask)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name in WRITERS])
def test_it_writes_the_same_tokens(name):
  pretrained, arrays = read(name)
  ends = np.cumsum(arrays["prompt_lengths"])[:-1]
  prompts = [prompt.tolist() for prompt in np.split(arrays["prompts"], ends)]
  sampler = Sampler(temperature=0, max_new_tokens=arrays["added"].shape[1])
  assert generate(pretrained.model, pretrained.params, prompts, -1, sampler) == arrays["added"].tolist()


@pytest.mark.parametrize("name", GOLDEN)
def test_written_and_read_again_it_is_the_same_to_the_bit(name, tmp_path):
  pretrained, _ = read(name)
  save_pretrained(pretrained, tmp_path)
  again = load_pretrained(tmp_path)
  assert again.model == pretrained.model
  assert again.labels == pretrained.labels
  assert jax.tree.structure(again.params) == jax.tree.structure(pretrained.params)
  jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
  original, exported = load_file(GOLDEN_DIR / name / "model.safetensors"), load_file(tmp_path / "model.safetensors")
  assert sorted(exported) == sorted(original)
  for key in original:
    np.testing.assert_array_equal(exported[key], original[key], err_msg=key)
