"""Tags and entities there and back, as an independent reading of seqeval's rules counts them; words and their pieces."""

import itertools

import numpy as np
import pytest

from lm.data import tagging
from lm.data.tokenizer import Bytes, SentencePiece, train

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("x", "a-b"))]


def by_table(tags):
  """Entities by the two tables of conlleval: when one ends, when one starts."""
  found, start = [], 0
  for i, (before, tag) in enumerate(itertools.pairwise(["O", *tags, "O"])):
    (p, old), (t, new) = (tuple(x.split("-", 1)) if "-" in x else (x, "") for x in (before, tag))
    ends = p in ("E", "S") or p + t in ("BB", "BS", "BO", "IB", "IS", "IO") or p != "O" and old != new
    starts = t in ("B", "S") or p + t in ("EE", "EI", "SE", "SI", "OE", "OI") or t != "O" and old != new
    if ends:
      found.append((old, start, i))
    if starts:
      start = i
  return found


def by_grammar(tags, scheme):
  """Strict entities: from each start the longest run that the scheme's grammar takes."""
  found = []
  for i, tag in enumerate(tags):
    prefix, _, kind = tag.partition("-")
    if prefix == "S" and scheme == "bioes":
      found.append((kind, i, i + 1))
    if prefix == "B":
      j = i + 1
      while j < len(tags) and tags[j] == f"I-{kind}":
        j += 1
      if scheme == "bio":
        found.append((kind, i, j))
      elif j < len(tags) and tags[j] == f"E-{kind}":
        found.append((kind, i, j + 1))
  return found


def sentences():
  """All of up to three words, and random longer ones."""
  rng = np.random.default_rng(0)
  yield from (list(tags) for count in range(4) for tags in itertools.product(TAGS, repeat=count))
  yield from (rng.choice(TAGS, rng.integers(4, 12)).tolist() for _ in range(2000))


def test_any_tags_are_read_as_conlleval_and_seqeval_read_them():
  for tags in sentences():
    assert tagging.read(tags) == by_table(tags), tags


@pytest.mark.parametrize("scheme", tagging.SCHEMES)
def test_strict_entities_are_those_of_the_grammar(scheme):
  for tags in sentences():
    if scheme == "bioes" or not {tag[0] for tag in tags} & {"E", "S"}:
      assert tagging.read(tags, scheme) == by_grammar(tags, scheme), tags


@pytest.mark.parametrize("scheme", tagging.SCHEMES)
def test_entities_come_back_from_their_tags_in_every_scheme(scheme):
  for tags in sentences():
    spans = tagging.read(tags)
    written = tagging.write(spans, len(tags), scheme)
    assert tagging.read(written) == tagging.read(written, scheme) == spans
    assert set(written) <= set(tagging.classes(["x", "a-b"], scheme))


def test_schemes_write_what_their_names_say():
  spans = [("PER", 0, 3), ("LOC", 3, 4), ("PER", 5, 7)]
  assert tagging.write(spans, 8, "bio") == ["B-PER", "I-PER", "I-PER", "B-LOC", "O", "B-PER", "I-PER", "O"]
  assert tagging.write(spans, 8, "bioes") == ["B-PER", "I-PER", "E-PER", "S-LOC", "O", "B-PER", "E-PER", "O"]
  assert tagging.types(["O", "B-creative-work", "I-x"]) == ("creative-work", "x")


@pytest.mark.parametrize("tag", ["", "B", "B-", "X-PER", "PER", "o", "BPER", "O-PER"])
def test_a_tag_of_no_scheme_is_told(tag):
  assert tagging.check(tag)
  assert not any(map(tagging.check, TAGS))


def test_words_of_a_text():
  text = "Go, 中国 v2.0!"
  words = {how: [text[start:stop] for start, stop in tagging.split_words(text, how)] for how in tagging.WORDS}
  assert words["word"] == ["Go", ",", "中", "国", "v2", ".", "0", "!"]
  assert words["space"] == ["Go,", "中国", "v2.0!"]
  assert words["character"] == list("Go,中国v2.0!")
  assert tagging.find_words("a ab b", ["a", "ab", "b"]) == [(0, 1), (2, 4), (5, 6)]
  assert tagging.find_words("a b", ["b", "a"]) is None


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  from lm.data.hf_tokenizer import BERT, GPT2, HuggingFace

  folder = tmp_path_factory.mktemp("tokenizers")
  lines = [
    "New York is larger than Newark.",
    "北京 是 中国 的 首都。北京北京中国中国",
    "We rejected it, and the newest one.",
  ] * 20
  train(lines, str(folder / "piece.model"), vocab_size=295)
  pieces = [
    "[UNK]",
    "[SEP]",
    "[PAD]",
    "[CLS]",
    "[MASK]",
    "new",
    "yo",
    "##rk",
    "##ark",
    "202",
    "##4",
    "2",
    "0",
    "4",
    "中",
    "国",
    ",",
    "is",
  ]
  wordpiece = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
  wordpiece.normalizer, wordpiece.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
  wordpiece.decoder = decoders.WordPiece(prefix="##")
  level = pre_tokenizers.ByteLevel.alphabet()
  vocab = {piece: i for i, piece in enumerate(["<|endoftext|>", *sorted(level), "Ġn", "ew", "Ġnew", "ä¸", "ä¸Ń"])}
  byte_level = Tokenizer(models.BPE(vocab, [("Ġ", "n"), ("e", "w"), ("Ġn", "ew"), ("ä", "¸"), ("ä¸", "Ń")]))
  byte_level.pre_tokenizer, byte_level.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
  byte_level.add_special_tokens(["<|endoftext|>"])
  return {
    "bytes": Bytes(),
    "sentencepiece": SentencePiece(str(folder / "piece.model")),
    "wordpiece": HuggingFace(wordpiece, BERT, {}),
    "byte_level": HuggingFace(byte_level, {kind: name for kind, name in GPT2.items() if kind != "unk"}, {}),
  }


def first_pieces(tok, text, words):
  places = tagging.find_words(text, words)
  ids, word = tagging.align(text, places, tok)
  assert len(ids) == len(word)
  return ids, word, [tok.piece(ids[place]) for place in np.flatnonzero(word)]


@pytest.mark.parametrize("name", ["bytes", "sentencepiece", "wordpiece", "byte_level"])
@pytest.mark.parametrize("text", ["New York is larger , it is new", "中国 new 北京", "a"])
def test_every_word_has_one_first_piece_in_the_ids_of_the_whole_text(name, text, tokenizers):
  tok = tokenizers[name]
  ids, word, _ = first_pieces(tok, text, text.split())
  assert word[word > 0].tolist() == list(range(1, len(text.split()) + 1))
  assert ids == tok.encode(text)


def test_a_first_piece_is_the_one_with_the_space_before_the_word(tokenizers):
  assert first_pieces(tokenizers["byte_level"], "a new y", ["a", "new", "y"])[2] == ["a", "▁new", "y"]
  assert first_pieces(tokenizers["wordpiece"], "New Newark York", ["New", "Newark", "York"])[1].tolist() == [1, 2, 0, 3, 0]
  pieces = first_pieces(tokenizers["sentencepiece"], "New York is", ["New", "York", "is"])[2]
  assert [piece.strip("▁")[0] for piece in pieces] == list("NYi"), "a piece that is a space alone is none of a word"


@pytest.mark.parametrize("name", ["bytes", "sentencepiece", "wordpiece", "byte_level"])
@pytest.mark.parametrize("text", ["北京是中国", "2024中国", "中 国"])
def test_characters_that_are_one_piece_are_encoded_one_by_one(name, text, tokenizers):
  tok, characters = tokenizers[name], [character for character in text if character != " "]
  ids, word, pieces = first_pieces(tok, text, characters)
  assert word[word > 0].tolist() == list(range(1, len(characters) + 1))
  if name == "wordpiece" and text[0] == "2":
    assert pieces == list("2024中国")
  assert tok.decode(ids).replace(" ", "") == text.replace(" ", "") or name == "wordpiece"


def test_a_word_that_the_tokenizer_has_nothing_for_has_no_piece(tokenizers):
  _, word, pieces = first_pieces(tokenizers["wordpiece"], "new \u200b york", ["new", "\u200b", "york"])
  assert (word[word > 0].tolist(), pieces) == ([1, 3], ["new", "yo"])
  assert tagging.align("", [], tokenizers["wordpiece"])[0] == []
