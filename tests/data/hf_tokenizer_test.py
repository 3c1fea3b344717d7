"""Tokenizers of Hugging Face: every kind of file is read, what is missing is named, a workdir keeps the ids."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import lm
from lm import build, saved, train
from lm.config import ConfigError
from lm.data import tokenizer
from lm.data.hf_tokenizer import BERT, GPT2, KINDS, ROBERTA
from lm.tasks.classify import Classify
from tests.conftest import LABELS, TEXTS, make_run
from tests.data.tokenizer_test import HARD, SENTENCES

GOLDEN = Path(__file__).parent.parent / "golden" / "hf_tokenizers.json"
SAMPLES = [
  "The list sorts, naïvely.",
  "  two  spaces ",
  "中文 and 😀",
  "\ttab\nand line\r\n",
  "",
  "[MASK] <mask> <|endoftext|>",
]


def train_backend(kind, specials, vocab_size=400):
  """A small backend of a kind, as the `tokenizers` package trains it."""
  if kind == "wordpiece":
    backend, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder, options = decoders.WordPiece(), {}
  elif kind == "bpe":
    backend, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
  else:
    backend, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer
    backend.pre_tokenizer, backend.decoder, options = pre_tokenizers.Metaspace(), decoders.Metaspace(), {"unk_token": "<unk>"}
  specials = list(dict.fromkeys(specials))
  backend.train_from_iterator(TEXTS, trainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False, **options))
  return backend


def write_files(folder, kind, **config):
  """A folder as models come in. kind: unigram is a tokenizer.json, the others are files of older models."""
  folder.mkdir(parents=True, exist_ok=True)
  if kind == "bert":
    vocab = train_backend("wordpiece", BERT.values()).get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__)))
  elif kind in ("gpt2", "roberta"):
    train_backend("bpe", {"gpt2": GPT2, "roberta": ROBERTA}[kind].values()).model.save(str(folder))
  else:
    train_backend("unigram", ["<pad>", "<unk>", "<s>", "</s>"]).save(str(folder / "tokenizer.json"))
  if config:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return folder


def load(folder):
  return tokenizer.load(str(folder))


def named(tok):
  """Every special by name, as the ids say."""
  ids = {kind: getattr(tok, f"{kind}_id") for kind in KINDS}
  return {kind: tok.piece(i) for kind, i in ids.items() if i is not None and i >= 0}


@pytest.mark.parametrize(
  ("kind", "specials", "pair_separators"),
  [
    ("bert", BERT | {"bos": "[CLS]", "eos": "[SEP]"}, 1),
    ("gpt2", dict.fromkeys(("bos", "eos", "unk", "sep", "pad", "cls"), "<|endoftext|>"), 1),
    ("roberta", ROBERTA, 2),
    ("unigram", {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>"}, 1),
  ],
)
def test_every_kind_of_folder_is_read_and_saved(kind, specials, pair_separators, tmp_path):
  tok = load(write_files(tmp_path / "from", kind))
  assert named(tok) == specials
  assert tok.pair_separators == pair_separators
  assert tok.token_bytes.shape == (tok.vocab_size,)
  assert not tok.token_bytes[list(tok.special_ids)].any()
  assert tok.encode_batch(SAMPLES) == [tok.encode(text) for text in SAMPLES]
  assert not {tok.bos_id, tok.cls_id, tok.sep_id} & set(tok.encode("The list sorts."))
  assert tok.decode([tok.bos_id, *tok.encode("the list"), tok.eos_id]) == "the list"
  tok.save(tmp_path)
  copy = tokenizer.load(tokenizer.saved_path(tmp_path, tok.fingerprint()))
  assert copy.fingerprint() == tok.fingerprint()
  assert (named(copy), copy.special_ids, copy.pair_separators) == (named(tok), tok.special_ids, pair_separators)
  assert copy.encode_batch(SAMPLES) == tok.encode_batch(SAMPLES)


def test_byte_level_pieces_add_up_to_the_text_and_are_read_by_people(tmp_path):
  tok = load(write_files(tmp_path, "gpt2"))
  for text in SAMPLES[:-1]:
    assert tok.decode(tok.encode(text)) == text
    assert tok.token_bytes[tok.encode(text)].sum() == len(text.encode())
  assert [tok.piece(i) for i in tok.encode(" é\n")] == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]


def test_word_piece_bytes_are_those_of_the_piece(tmp_path):
  tok = load(write_files(tmp_path, "bert"))
  ids = tok.encode("The LISTZZ")
  assert [tok.piece(i) for i in ids][:1] == ["the"]
  assert tok.token_bytes[tok.encode("the")].tolist() == [3]
  assert tok.token_bytes[[i for i in range(tok.vocab_size) if tok.piece(i) == "##t"]].tolist() == [1]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "unigram"])
def test_offsets_point_at_the_text(kind, tmp_path):
  tok, text = load(write_files(tmp_path, kind)), "The list sorts  the queue."
  ids, offsets = tok.encode_with_offsets(text)
  assert ids == tok.encode(text)
  assert (offsets.dtype, offsets.shape) == (np.int32, (len(ids), 2))
  for i, (start, stop) in zip(ids, offsets.tolist(), strict=True):
    piece = tok.piece(i).removeprefix("##").replace("▁", " ").strip()
    found = text[start:stop].strip().lower()
    assert found == piece.lower() or (start, stop, piece) == (0, 1, "")  # the space that Metaspace puts before a text
  empty, none = tok.encode_with_offsets("")
  assert (empty, none.shape) == ([], (0, 2))


def test_offsets_of_bytes_and_sentencepiece_cover_the_text(tmp_path):
  tokenizer.train(SENTENCES, str(tmp_path / "x.model"), 300)
  for tok in (tokenizer.Bytes(), load(tmp_path / "x.model")):
    for text in HARD:
      ids, offsets = tok.encode_with_offsets(text)
      assert ids == tok.encode(text)
      assert (offsets.dtype, offsets.shape) == (np.int32, (len(ids), 2))
      spans = list(dict.fromkeys(map(tuple, offsets.tolist())))  # bytes of one character share its span
      assert "".join(text[start:stop] for start, stop in spans) == text
    assert tok.encode_with_offsets("é中")[1].tolist() == [[0, 1]] * 2 + [[1, 2]] * 3


@pytest.mark.parametrize(
  ("files", "mask", "pad"),
  [
    ({"tokenizer_config.json": {"mask_token": "<m>"}}, "<m>", "<pad>"),
    ({"special_tokens_map.json": {"mask_token": {"content": "<m>", "lstrip": True}}}, "<m>", "<pad>"),
    ({"tokenizer_config.json": {"pad_token": {"content": "</s>"}}}, None, "</s>"),
    ({"config.json": {"pad_token_id": 5, "eos_token_id": [3, 4], "bos_token_id": -1}}, None, None),
    ({"added_tokens.json": {"<m>": 401}, "tokenizer_config.json": {"mask_token": "<m>"}}, "<m>", "<pad>"),
    ({"tokenizer_config.json": {"extra_special_tokens": ["<x>"], "mask_token": "<m>"}}, "<m>", "<pad>"),
  ],
)
def test_specials_are_named_by_any_of_the_files(files, mask, pad, tmp_path):
  write_files(tmp_path, "unigram")
  bare = load(tmp_path)
  for name, content in files.items():
    (tmp_path / name).write_text(json.dumps(content))
  tok = load(tmp_path)
  assert named(tok).get("mask") == mask
  assert tok.pad_id == 5 if pad is None else tok.piece(tok.pad_id) == pad
  assert (tok.bos_id, tok.eos_id) == (2, 3)
  assert tok.vocab_size == bare.vocab_size + (mask is not None) + ("<x>" in json.dumps(files))
  if mask:
    assert tok.mask_id in tok.special_ids
    assert tok.encode("the<m>list").count(tok.mask_id) == 1  # as transformers does


def test_a_literal_special_stays_text_where_the_files_say_so(tmp_path):
  for split in (False, True):
    tok = load(write_files(tmp_path / str(split), "gpt2", split_special_tokens=split))
    assert (tok.encode("<|endoftext|>") == [tok.eos_id]) is not split
    tok.save(tmp_path)
    assert tokenizer.load(str(tmp_path / "tokenizer")).encode("<|endoftext|>") == tok.encode("<|endoftext|>")


def test_a_baked_in_cut_or_padding_is_not_applied(tmp_path):
  backend = train_backend("unigram", ["<pad>", "<unk>", "</s>"])
  backend.enable_truncation(3)
  backend.enable_padding(length=50)
  backend.save(str(tmp_path / "tokenizer.json"))
  assert 3 < len(load(tmp_path / "tokenizer.json").encode(TEXTS[0])) < 50


@pytest.mark.parametrize(
  ("option", "text"), [("do_lower_case", "LIST"), ("tokenize_chinese_chars", "中文"), ("strip_accents", "lïst")]
)
def test_options_of_word_piece_change_the_ids(option, text, tmp_path):
  usual = load(write_files(tmp_path / "a", "bert"))
  other = load(write_files(tmp_path / "b", "bert", **{option: False}))
  assert usual.encode(text) != other.encode(text)
  assert usual.fingerprint() != other.fingerprint()


def test_a_chat_template_is_found_and_kept(tmp_path):
  several = [{"name": "default", "template": "{{ a }}"}, {"name": "tools", "template": "{{ b }}"}]
  for template in ("{{ a }}", several):
    tok = load(write_files(tmp_path / "from", "unigram", chat_template=template))
    assert tok.chat_template == "{{ a }}"
  (tmp_path / "from" / "chat_template.jinja").write_text("{{ file }}")
  tok = load(tmp_path / "from")
  tok.save(tmp_path)
  assert load(tmp_path / "tokenizer").chat_template == tok.chat_template == "{{ file }}"
  assert tokenizer.Bytes().chat_template is None


def test_a_folder_with_a_sentencepiece_file_is_that_model(tmp_path):
  for name in ("tokenizer.model", "spiece.model"):
    (tmp_path / name).mkdir()
    path = tmp_path / name / name
    tokenizer.train(SENTENCES, str(path), 300)
    assert load(tmp_path / name).fingerprint() == load(path).fingerprint()


BAD_FOLDERS = {
  "empty": ({}, r"no tokenizer there; looked for tokenizer.json, vocab.txt, vocab.json with merges.txt, tokenizer.model, spi"),
  "half": ({"vocab.json": "{}"}, "no tokenizer there"),
  "shifted": (
    {"sentencepiece.bpe.model": ""},
    r"the ids in sentencepiece\.bpe\.model are not those .* get their tokenizer\.json",
  ),
  "no json": ({"tokenizer.json": "{"}, r"tokenizer\.json': not a tokenizer\.json \("),
  "another json": ({"tokenizer.json": '{"model": 3}'}, r"not a tokenizer\.json \("),
  "no merges": ({"vocab.json": "{}", "merges.txt": "a b c\n"}, r"not a vocab\.json and merges\.txt"),
  "no text": ({"vocab.txt": b"\xff\xfe"}, "not a WordPiece vocabulary"),
  "no model": ({"tokenizer.model": "x"}, "not a SentencePiece model"),
  "bad config": ({"tokenizer_config.json": "{", "vocab.txt": "a"}, r"tokenizer_config\.json is not JSON"),
  "list config": ({"tokenizer_config.json": "[1]", "vocab.txt": "a"}, r"tokenizer_config\.json does not hold a JSON object"),
  "no name": ({"tokenizer_config.json": '{"mask_token": 5}', "vocab.txt": "a"}, "special token 5 in a file; accepted are"),
  "no end": ({"tokenizer.json": Tokenizer(models.BPE({"a": 0}, [])).to_str()}, "no token ends a sequence"),
  "no unk": (
    {"tokenizer.json": Tokenizer(models.WordPiece({"[SEP]": 0})).to_str(), "tokenizer_config.json": '{"sep_token": "[SEP]"}'},
    r"not a tokenizer of any text \(.*\[UNK\]",
  ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_what_cannot_be_read_is_one_line(case, tmp_path):
  files, message = BAD_FOLDERS[case]
  for name, content in files.items():
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(ConfigError, match=message) as error:
    load(tmp_path)
  assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named():
  with pytest.raises(ConfigError, match=r"config\.tokenizer='runs/x\.json': no such file"):
    tokenizer.load("runs/x.json")


def test_a_pair_of_roberta_has_two_separators_and_no_token_types(tmp_path):
  found = {}
  for kind in ("bert", "roberta"):
    tok = load(write_files(tmp_path / kind, kind))
    (stored,) = Classify(("n", "y"), pair=True).prepare({"text": "list", "text_pair": "queue file", "label": "y"}, tok)
    for cut, size in ((False, len(stored["tokens"])), (True, 6)):
      rows = {name: stored[name][None, :size] for name in ("tokens", "place")}
      rows |= {"label": np.array([1]), "segment_ids": np.ones((1, size))}
      row = Classify(("n", "y"), pair=True).corrupt(rows, None, tok, size)
      found[kind, cut] = [tok.piece(i) for i in row["tokens"][0].tolist()], row["token_types"][0].tolist()
  assert found["bert", False] == (["[CLS]", "list", "[SEP]", "queue", "file", "[SEP]"], [0, 0, 0, 1, 1, 1])
  pieces, types = found["roberta", False]
  assert "".join(pieces) == "<s>list</s></s>queue▁file</s>"
  assert set(types) == {0}
  assert [piece for piece in found["roberta", True][0] if piece[0] == "<"] == ["<s>", "</s>", "</s>", "</s>"]


def test_a_run_keeps_its_tokenizer_and_another_inherits_it(tmp_path):
  folder, data = write_files(tmp_path / "from", "bert"), {"name": "memory", "texts": TEXTS}
  base = tmp_path / "base"
  run = make_run("mlm", tokenizer=str(folder), total_steps=1, data=data)
  train.train(run, base)
  for path in folder.iterdir():  # the copy is whole without them
    path.unlink()
  tok = saved.load_tokenizer(base)
  assert tok.fingerprint() == run.tokenizer.fingerprint()
  assert build.load_run(base).tokenizer.fingerprint() == tok.fingerprint()
  labelled = data | {"text_labels": LABELS}
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "total_steps": 1, "data": labelled}
  tuned = make_run("classify", **settings)
  train.train(tuned, tmp_path / "tuned")
  assert tuned.tokenizer.fingerprint() == tok.fingerprint()
  assert len(lm.load(tmp_path / "tuned").predict(list(TEXTS[:2]))) == 2
  with pytest.raises(ConfigError, match=r"config\.tokenizer=.*: not the one that .* was trained with"):
    make_run("classify", **settings | {"tokenizer": str(write_files(tmp_path / "other", "gpt2"))})


def test_added_tokens_keep_their_flags(tmp_path):
  backend = train_backend("unigram", ["<pad>", "<unk>", "</s>"])
  backend.add_tokens([AddedToken("<keep>", special=False), AddedToken("<strip>", lstrip=True, special=True)])
  backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 2)])
  backend.save(str(tmp_path / "tokenizer.json"))
  tok = load(tmp_path)
  keep, strip = (backend.token_to_id(name) for name in ("<keep>", "<strip>"))
  assert strip in tok.special_ids and keep not in tok.special_ids
  assert tok.token_bytes[keep] == len("<keep>")
  assert tok.encode("list <strip>") == [*tok.encode("list"), strip]
  assert tok.decode([keep, strip]) == "<keep>"


def golden_texts(data_dir):
  """English and Chinese lines. <unk> stands for rare words in the English; that is no text, and some read it as a special."""
  lines = (data_dir / "wikitext-2" / "valid.txt").read_text(encoding="utf-8").replace("<unk>", "xyzzy").splitlines()[:400]
  return lines + (data_dir / "chnsenticorp" / "dev.tsv").read_text(encoding="utf-8").splitlines()[:200]


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese", "gpt2", "sentencepiece/test_model.model"])
def test_real_vocabularies_give_the_ids_that_transformers_gave(name, data_dir):
  ids = load(data_dir / "tokenizers" / name).encode_batch(golden_texts(data_dir))
  expected = json.loads(GOLDEN.read_text())[name]
  assert ids[1:400:20] == expected["every 20th"]
  assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == expected["sha256"]
