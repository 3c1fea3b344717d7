"""Tokenizers lose nothing, no text gives a special id, and training is repeatable and says what is wrong."""

import io

import hypothesis
import pytest
import sentencepiece
from hypothesis import strategies

from lm.config import ConfigError
from lm.data import tokenizer
from lm.data.sources.pydocs import Pydocs

HARD = [
  "",
  " a  b\t\r\nc ",
  "中文 and 😀",
  "<s> </s> <pad> <unk> [MASK]",
  "\u2581 mark\u2581\u2581",
  "\x00\x7f",
  "\ue581<0xE2>",
]
SENTENCES = tuple(f"the quick brown fox jumps over the lazy dog {i} times\n" for i in range(300))


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


@hypothesis.settings(
  max_examples=200, deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(strategies.text(strategies.characters(exclude_categories=["Cs"])))
def test_any_text_survives(trained, text):
  check(trained, text)
  check(tokenizer.Bytes(), text)


def test_specials_are_distinct_and_stand_for_nothing(trained):
  for tok in (trained, tokenizer.Bytes()):
    assert tok.special_ids == (0, 1, 2, 3, 4)
    assert (tok.cls_id, tok.sep_id) == (tok.bos_id, tok.eos_id)
    assert tok.token_bytes.shape == (tok.vocab_size,)
    assert not tok.token_bytes[:5].any()
    assert tok.token_bytes[5:].all()
    assert tok.decode([tok.bos_id, *tok.encode("a"), tok.mask_id, *tok.encode("b"), tok.eos_id]) == "ab"


def test_saved_model_is_the_same(trained, tmp_path):
  for tok in (trained, tokenizer.Bytes()):
    tok.save(tmp_path)
    assert tokenizer.load(tokenizer.saved_path(tmp_path, tok.fingerprint())).fingerprint() == tok.fingerprint()
  assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


def test_same_texts_give_the_same_file(tmp_path):
  for name in ("a", "b"):
    tokenizer.train(SENTENCES, str(tmp_path / name), 300)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_model_of_characters_has_one_piece_for_each(tmp_path):
  path = str(tmp_path / "x.model")
  tokenizer.train(["abc é\n", "ab 中"], path, kind="char", extra_symbols=["<fim>"])
  tok = tokenizer.load(path)
  assert tok.vocab_size == 5 + 1 + 256 + len("abc é\n中")
  for text in (*HARD, "cab 中 not seen"):
    check(tok, text)
  ids, spans = tok.encode_with_offsets("b 中x")
  assert [tok.piece(i) for i in ids] == ["b", "\u2581", "中", "<0x78>"]
  assert spans.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
  with pytest.raises(ConfigError, match="vocab_size=300: has no effect on kind 'char'"):
    tokenizer.train(["a"], path, 300, kind="char")
  with pytest.raises(ConfigError, match="kind='bpe': accepted are unigram, char"):
    tokenizer.train(["a"], path, kind="bpe")


def test_a_line_longer_than_the_trainer_takes_is_cut_not_left_out(tmp_path):
  tokenizer.train([*SENTENCES, "ж щ " * 50_000], str(tmp_path / "x.model"), 300)
  assert len(tokenizer.load(str(tmp_path / "x.model")).encode("ж")) == 1


def test_a_model_made_elsewhere_has_no_mask_token(tmp_path):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=50, minloglevel=2)
  (tmp_path / "x.model").write_bytes(model.getvalue())
  tok = tokenizer.load(str(tmp_path / "x.model"))
  assert tok.mask_id is None
  assert tok.pad_id == -1
  assert tok.special_ids == (tok.unk_id, tok.bos_id, tok.eos_id)
  assert tok.decode(tok.encode("the lazy\u2581dog")) == "the lazy dog"  # without byte fallback the mark is a space


def test_what_is_no_model_is_an_error(tmp_path):
  with pytest.raises(ConfigError, match=r"runs/x\.model.*train_tokenizer --output=runs/x\.model"):
    tokenizer.load("runs/x.model")
  for content in (b"", b"not a model"):
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.tokenizer=.*not a SentencePiece model"):
      tokenizer.load(str(tmp_path / "x.model"))


@pytest.mark.parametrize(
  ("texts", "vocab_size", "message"),
  [
    ((), 300, "no text"),
    (("",), 300, "no text"),
    (SENTENCES, 10, "vocab_size=10: at least 262"),
    (SENTENCES, 4096, "vocab_size=4096: Vocabulary size too high"),
    (SENTENCES, 270, "vocab_size=270: Vocabulary size is smaller"),
  ],
)
def test_impossible_training_says_why_and_writes_nothing(texts, vocab_size, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    tokenizer.train(texts, str(tmp_path / "x.model"), vocab_size)
  assert not list(tmp_path.iterdir())
