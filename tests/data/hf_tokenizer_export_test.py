"""What is written for Hugging Face has our ids of any text, adds our specials, and what it cannot keep is known."""

import io
import json

import hypothesis
import pytest
import sentencepiece
from hypothesis import strategies
from tokenizers import Tokenizer

from lm.config import ConfigError
from lm.data import tokenizer
from lm.data.hf_tokenizer import KINDS
from lm.data.hf_tokenizer_export import to_huggingface
from tests.data.hf_tokenizer_test import load, write_files
from tests.data.tokenizer_test import SENTENCES


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["bytes", "unigram", "char"])
def test_an_export_has_our_ids_and_our_sequences(kind, causal, tmp_path):
  options = {"kind": "char"} if kind == "char" else {"vocab_size": 300}
  tokenizer.train(SENTENCES, str(tmp_path / "x.model"), **options)
  tok = tokenizer.Bytes() if kind == "bytes" else load(tmp_path / "x.model")
  to_huggingface(tok, tmp_path / "out", 128, causal, token_types=not causal)
  other = load(tmp_path / "out")
  plain = ["", " a  b\t\r\nc ", "中文 and 😀", "\x00\x7f", "ཀ ꦗ", "the quick\n\n\nbrown  ", *SENTENCES[:50]]
  for text in plain:
    assert other.encode(text) == tok.encode(text)
    assert other.decode(tok.encode(text)) == text
    if tok.vocab_size == 261:
      assert other.encode_with_offsets(text)[1].tolist() == tok.encode_with_offsets(text)[1].tolist()
  assert (other.vocab_size, other.special_ids) == (tok.vocab_size, tok.special_ids)
  assert {kind: getattr(other, f"{kind}_id") == getattr(tok, f"{kind}_id") for kind in KINDS} == dict.fromkeys(KINDS, True)
  assert (other.token_bytes == tok.token_bytes).all()
  backend = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  a, b, (bos, sep) = tok.encode("the"), tok.encode("dog"), (tok.bos_id, tok.eos_id)
  assert backend.encode("the").ids == ([bos, *a] if causal else [bos, *a, sep])
  pair = backend.encode("the", "dog")
  assert pair.ids == ([bos, *a, *b] if causal else [bos, *a, sep, *b, sep])
  assert max(pair.type_ids) == (not causal)
  config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert (config["model_max_length"], config["tokenizer_class"]) == (128, "PreTrainedTokenizerFast")
  assert ("token_type_ids" in config["model_input_names"]) is not causal


@hypothesis.settings(
  max_examples=200, deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\u2581")))
def test_an_export_has_our_ids_of_any_text(exported, text):
  for tok, other in exported:
    assert other.encode(text) == tok.encode(text)
    assert other.decode(tok.encode(text)) == text


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp("exported")
  tokenizer.train(SENTENCES, str(folder / "x.model"), 300)
  pairs = []
  for tok in (tokenizer.Bytes(), load(folder / "x.model")):
    to_huggingface(tok, folder / "out", 128, causal=True)
    pairs.append((tok, load(folder / "out")))
  return pairs


def test_what_an_export_cannot_keep(tmp_path):
  tokenizer.train(SENTENCES, str(tmp_path / "x.model"), 300)
  for tok in (tokenizer.Bytes(), load(tmp_path / "x.model")):
    to_huggingface(tok, tmp_path / "out", 128, causal=True)
    other = load(tmp_path / "out")
    for name, i in (("<s>", tok.bos_id), ("</s>", tok.eos_id), ("<pad>", tok.pad_id), ("[MASK]", tok.mask_id)):
      assert other.encode(name) == [i] != tok.encode(name)
    if tok.vocab_size != 261:
      assert other.encode("\u2581") == tok.encode(" ") != tok.encode("\u2581")
      assert other.encode("<0x41>") == tok.encode("A") != tok.encode("<0x41>")


def test_equal_scores_may_be_cut_in_another_order_and_are_the_same_pieces(tmp_path):
  tokenizer.train([*SENTENCES, *("*" * n for n in range(1, 40))], str(tmp_path / "x.model"), 300)
  tok = load(tmp_path / "x.model")
  to_huggingface(tok, tmp_path / "out", 128, causal=True)
  for n in range(1, 80):
    assert sorted(load(tmp_path / "out").encode("*" * n)) == sorted(tok.encode("*" * n))


def test_a_sentencepiece_model_that_changes_the_text_is_not_exported(tmp_path):
  for options in ({}, {"model_type": "bpe"}, {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=60, minloglevel=2, hard_vocab_limit=False, **options
    )
    (tmp_path / "x.model").write_bytes(model.getvalue())
    with pytest.raises(ConfigError, match="only a SentencePiece model of kind unigram or char that keeps the text"):
      to_huggingface(load(tmp_path / "x.model"), tmp_path / "out", 128, causal=True)
  assert not (tmp_path / "out").exists()


def test_a_loaded_tokenizer_is_exported_as_it_was(tmp_path):
  tok = load(write_files(tmp_path / "from", "roberta", padding_side="left"))
  to_huggingface(tok, tmp_path / "out", 64, causal=False)
  other = load(tmp_path / "out")
  assert other.fingerprint() == tok.fingerprint()
  assert other.pair_separators == 2
  assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["padding_side"] == "left"
