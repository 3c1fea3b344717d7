"""Tokenizers give the ids of transformers: for real vocabularies, for what we train ourselves, and for what we export."""

import csv
import hashlib
import json

import pytest

from lm.data import tokenizer
from lm.data.hf_tokenizer_export import to_huggingface
from lm.data.sources.pydocs import Pydocs
from tests.data.hf_tokenizer_test import GOLDEN, KINDS, SAMPLES, SENTENCES, golden_texts, load, write_files
from tests.data.tokenizer_test import HARD

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity
CLASSES = {
  "bert": "BertTokenizer",
  "gpt2": "GPT2Tokenizer",
  "roberta": "RobertaTokenizer",
  "unigram": "PreTrainedTokenizerFast",
}
REAL = {"bert-base-uncased": "bert", "bert-base-chinese": "bert", "gpt2": "gpt2"}
PLAIN = [
  "",
  " ",
  "  a  b ",
  "a\n\n\tb\r\n",
  "中文 and 😀👩‍👧",
  "\x00\x01\x7f\x85",
  "ཀ ꦗ 𐎀 \u200b",
  "e\u0301 ﬁ ½",
  *SENTENCES[:20],
]
NAMES = ("<unk>", "<pad>", "<s>", "</s>", "[MASK]")


@pytest.fixture
def lines(data_dir):
  """1,000 lines: English, Chinese, tweets."""
  with open(data_dir / "hate_speech_offensive" / "labeled_data.csv", encoding="utf-8", newline="") as stream:
    tweets = [row["tweet"] for _, row in zip(range(400), csv.DictReader(stream), strict=False)]
  return golden_texts(data_dir) + tweets


def check(tok, theirs, texts):
  """The same ids, offsets and decoded text, one by one and at once, and the same specials."""
  theirs_at_once = theirs(texts, add_special_tokens=False, return_offsets_mapping=True)
  assert tok.encode_batch(texts) == theirs_at_once["input_ids"]
  for text, ids, offsets in zip(texts, theirs_at_once["input_ids"], theirs_at_once["offset_mapping"], strict=True):
    ours, spans = tok.encode_with_offsets(text)
    assert (tok.encode(text), ours) == (ids, ids)
    assert list(map(tuple, spans.tolist())) == offsets
    assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
  assert tok.vocab_size == len(theirs)
  named = [kind for kind in KINDS if getattr(theirs, f"{kind}_token_id") is not None]
  assert [getattr(tok, f"{kind}_id") for kind in named] == [getattr(theirs, f"{kind}_token_id") for kind in named]
  assert set(theirs.all_special_ids) <= set(tok.special_ids)


def same_pair(theirs, tok):
  """Whether their [cls a sep b sep] is ours."""
  a, b = (theirs(text, add_special_tokens=False)["input_ids"] for text in ("the list", "queue"))
  return theirs("the list", "queue")["input_ids"] == [tok.cls_id, *a, *[tok.sep_id] * tok.pair_separators, *b, tok.sep_id]


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies(name, data_dir, lines):
  folder = data_dir / "tokenizers" / name
  check(load(folder), getattr(transformers, CLASSES[REAL[name]]).from_pretrained(folder), lines + HARD + SAMPLES + PLAIN)


@pytest.mark.parametrize("name", [*REAL, "sentencepiece/test_model.model"])
def test_golden_ids_are_those_of_transformers(name, data_dir, request, tmp_path):
  path, texts = data_dir / "tokenizers" / name, golden_texts(data_dir)
  if name in REAL:
    theirs = getattr(transformers, CLASSES[REAL[name]]).from_pretrained(path)
  else:
    (tmp_path / "spiece.model").write_bytes(path.read_bytes())
    theirs = transformers.BertGenerationTokenizer.from_pretrained(tmp_path)  # a plain SentencePiece model
  ids = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
  found = {"every 20th": ids[1:400:20], "sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest()}
  kept = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
  if request.config.getoption("--update-golden"):
    kept[name] = found
    GOLDEN.write_text(json.dumps(kept, sort_keys=True) + "\n")
  assert kept[name] == found


STRIPPING = {"__type": "AddedToken", "content": "<mask>", "lstrip": True}
CONFIGS = {
  "bert": ({}, {"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}, {"mask_token": "<m>"}),
  "gpt2": ({}, {"add_prefix_space": True}, {"pad_token": "<p>"}, {"split_special_tokens": True}),
  "roberta": ({}, {"add_prefix_space": True}, {"trim_offsets": False}, {"mask_token": STRIPPING}),
  "unigram": (
    {"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<x>"]},
    {"eos_token": "</s>", "sep_token": "<sep>"},
  ),
}


@pytest.mark.parametrize(("kind", "config"), [(kind, config) for kind in CONFIGS for config in CONFIGS[kind]])
def test_options_of_the_files(kind, config, tmp_path):
  folder = write_files(tmp_path, kind, **config)
  theirs, tok = getattr(transformers, CLASSES[kind]).from_pretrained(folder), load(folder)
  check(tok, theirs, HARD + SAMPLES + PLAIN + ["THE <mask> list<x>", "a <m>", "<sep>"])
  if kind in ("bert", "roberta"):
    assert same_pair(theirs, tok)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_added_tokens_get_their_ids(kind, tmp_path):
  folder = write_files(tmp_path / "old", kind)
  (folder / "added_tokens.json").write_text(json.dumps({"<one>": 402, "<Two>": 401, "<three>": 400}))
  (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<four>"], "pad_token": "<three>"}))
  theirs, texts = (
    getattr(transformers, CLASSES[kind]).from_pretrained(folder),
    ["a<one> b", "<Two> <three>x", "<four>", "<two>"],
  )
  check(load(folder), theirs, texts)
  theirs.save_pretrained(tmp_path / "new")
  check(load(tmp_path / "new"), theirs, texts + SAMPLES)


@pytest.mark.parametrize("kind", CLASSES)
def test_what_is_loaded_is_exported_as_it_was(kind, tmp_path):
  folder = write_files(tmp_path / "from", kind)
  tok, before = load(folder), getattr(transformers, CLASSES[kind]).from_pretrained(folder)
  to_huggingface(tok, tmp_path / "out", 77, causal=kind == "gpt2", token_types=kind == "bert")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  check(tok, theirs, HARD + SAMPLES + PLAIN)
  assert theirs.model_max_length == 77
  if kind != "unigram":  # whose transformers names no specials without a tokenizer_config.json
    assert theirs.special_tokens_map == before.special_tokens_map
    assert dict(theirs("the list", "queue")) == dict(before("the list", "queue"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Models of our own training, a large and a small one, and bytes."""
  folder, source = tmp_path_factory.mktemp("tokenizers"), Pydocs()
  tokenizer.train((source[i]["text"] for i in range(len(source))), str(folder / "large.model"))
  tokenizer.train(SENTENCES, str(folder / "small.model"), 300)
  return {"large": load(folder / "large.model"), "small": load(folder / "small.model"), "bytes": tokenizer.Bytes()}


@pytest.mark.parametrize("name", ["large", "small", "bytes"])
def test_what_we_train_has_the_same_ids_there(name, trained, lines, tmp_path):
  tok = trained[name]
  to_huggingface(tok, tmp_path, 1 << 20, causal=False)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  texts = [line for line in lines + PLAIN + HARD if not any(special in line for special in (*NAMES, "\u2581", "<0x"))]
  assert len(texts) > 990
  for text in texts:
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert tok.encode(text) == ids
    assert theirs.decode(ids) == text
  assert len(theirs) == tok.vocab_size
  assert sorted(theirs.all_special_ids) == sorted(tok.special_ids)
  assert theirs("a", "b")["input_ids"] == [tok.cls_id, *tok.encode("a"), tok.sep_id, *tok.encode("b"), tok.sep_id]
  assert theirs.decode(theirs("a  b")["input_ids"], skip_special_tokens=True) == "a  b"
  assert "token_type_ids" not in theirs("a", "b")


@pytest.mark.parametrize("name", ["large", "small", "bytes"])
def test_names_in_a_text_are_specials_there(name, trained, tmp_path):
  tok = trained[name]
  to_huggingface(tok, tmp_path, 128, causal=True)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for special in NAMES:
    assert theirs(special, add_special_tokens=False)["input_ids"] == [theirs.convert_tokens_to_ids(special)]
    assert not set(tok.encode(special)) & set(tok.special_ids)
  assert theirs("a")["input_ids"] == [tok.bos_id, *tok.encode("a")]
