"""Tokenizers lose nothing, and no text gives a special id."""

import pytest

from lm.data import tokenizer
from lm.data.sources.pydocs import Pydocs

HARD = ["", " a  b\t\r\nc ", "中文 and 😀", "<s> </s> <pad> <unk> [MASK]", "\u2581 mark\u2581\u2581", "\x00\x7f", "\ue581"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "pydocs.model"
  source = Pydocs()
  tokenizer.train((source[i]["text"] for i in range(len(source))), str(path))
  return tokenizer.load(str(path))


def check(tok, text):
  ids = tok.encode(text)
  assert tok.decode(ids) == text
  assert not set(ids) & set(tok.special_ids)
  assert tok.token_bytes[ids].sum() == len(text.encode())


def test_every_document_survives(trained):
  assert trained.vocab_size == 4096
  for split in ("train", "validation", "test"):
    source = Pydocs(split)
    for i in range(len(source)):
      check(trained, source[i]["text"])


@pytest.mark.parametrize("text", HARD)
def test_hard_text_survives(trained, text):
  check(trained, text)
  check(tokenizer.Bytes(), text)


def test_saved_model_is_the_same(trained, tmp_path):
  trained.save(str(tmp_path / "copy.model"))
  assert tokenizer.load(str(tmp_path / "copy.model")).fingerprint() == trained.fingerprint()
