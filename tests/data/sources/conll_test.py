"""CoNLL files: sentences of any layout, splits that stay, and every bad row said with its file and line."""

import gzip
import json
import re
from collections import Counter

import pyarrow
import pytest

from lm.config import ConfigError
from lm.data.sources.conll import Conll
from tests.conftest import make_run

TEXT = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O

Peter NNP B-PER
"""
READ = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]


def read(file, text=None, **settings):
  """Tokens and tags of all sentences of a file, in its order."""
  if text is not None:
    file.write_text(text)
  conll = Conll(path=str(file), **{"validation": str(file), "test": str(file), **settings})
  found = sorted((conll[i] for i in range(len(conll))), key=lambda e: int(e["id"].split(":")[-1]))
  return [(e["tokens"], e["tags"]) for e in found]


@pytest.mark.parametrize(
  "change",
  [
    str,
    lambda text: text.replace(" ", "\t"),
    lambda text: text.replace(" ", "   "),
    lambda text: text.replace("\n\n", "\n \t\n\n\n"),
    lambda text: text.replace("O\n", "O \n"),
    lambda text: text.rstrip("\n"),
    lambda text: text.replace("\n", "\r\n"),
    lambda text: "\ufeff" + text,
    lambda text: text.replace("-DOCSTART- -X- O\n\n", "-DOCSTART-\n"),
    lambda text: text.replace("rejects VBZ O\n\n", "rejects VBZ O\n-DOCSTART- -X- O\n"),
  ],
)
def test_any_layout_gives_the_same_sentences(change, tmp_path):
  assert read(tmp_path / "a.conll", change(TEXT)) == READ


def test_an_example_has_tokens_tags_text_and_a_place(tmp_path):
  file = tmp_path / "a.conll"
  file.write_text(TEXT)
  conll = Conll(path=str(file), validation=str(file), test=str(file))
  found = {e["id"]: e for e in (conll[i] for i in range(len(conll)))}
  expected = {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "text": "EU rejects", "id": f"{file}:3"}
  assert found[f"{file}:3"] == expected
  assert {conll.locate(i)["line"] for i in range(2)} == {3, 6}
  assert Conll(path=str(file), validation=str(file), test=str(file), joiner="")[0]["text"] in ("EUrejects", "Peter")


def test_columns_are_chosen_from_either_end(tmp_path):
  assert read(tmp_path / "a.conll", TEXT, token_column=1, tag_column=0)[1] == (["NNP"], ["Peter"])
  assert read(tmp_path / "a.conll", TEXT, token_column=-3, tag_column=-2)[1] == (["Peter"], ["NNP"])


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_compressed_and_remote_files_and_globs(kind, tmp_path):
  compress = gzip.compress if kind == ".gz" else lambda data: pyarrow.compress(data, "zstd", asbytes=True)
  (tmp_path / f"a.conll{kind}").write_bytes(compress(TEXT.encode()))
  (tmp_path / f"b.bio{kind}").write_bytes(compress(b"Rome B-LOC\n"))
  assert read(tmp_path / f"a.conll{kind}") == READ
  assert len(Conll(path=(str(tmp_path / "*"),), validation=f"file://{tmp_path}/a.conll{kind}", test=str(tmp_path))) == 3


def test_tokens_keep_what_is_no_blank_and_any_encoding_with_ascii(tmp_path):
  assert read(tmp_path / "a.conll", "New York\tB\n\u3000\tI\na\u00a0b\tI\n#\tO\n") == [
    (["New York", "\u3000", "a\u00a0b", "#"], ["B", "I", "I", "O"])
  ]
  (tmp_path / "a.conll").write_bytes("\u5317 B-LOC\n\u4eac I-LOC\n".encode("gb18030"))
  assert read(tmp_path / "a.conll", encoding="gb18030") == [(["\u5317", "\u4eac"], ["B-LOC", "I-LOC"])]


BAD = [
  (b"rejects VBZ", "4: 2 columns where the first line has 3"),
  (b"rejects VBZ O O", "4: 4 columns where the first line has 3"),
  (b"\tVBZ\tO", "4: an empty token"),
  (b"rejects\t\t\xe9", "4: byte 9 is not utf-8 text"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_row_is_an_error_or_its_sentence_is_left_out_and_counted(line, reason, tmp_path):
  file = tmp_path / "a.conll"
  file.write_bytes(TEXT.encode().replace(b"rejects VBZ O", line))
  with pytest.raises(ConfigError, match=re.escape(f"data.path: {file} line {reason}; data.on_bad_row=skip")):
    read(file)
  assert read(file, on_bad_row="skip") == READ[1:]
  said = Conll(path=str(file), validation=str(file), test=str(file), on_bad_row="skip").describe()
  assert f"sentences with a bad row left out: 3 of {file} ({reason[3:]})" in said, "each split reads it"


def test_an_empty_tag_is_a_bad_row(tmp_path):
  with pytest.raises(ConfigError, match="line 1: an empty tag"):
    read(tmp_path / "a.conll", "a\t\tx\n", tag_column=1)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"path": ""}, "data.path='': not set"),
    ({"path": "none.conll"}, "data.path='none.conll': no such file"),
    ({"split": "dev"}, "data.split='dev': accepted are train, validation, test"),
    ({"token_column": 3}, r"data.token_column=3: .*a.conll line 3 has 3 columns, accepted is -3 to 2"),
    ({"tag_column": -4}, r"data.tag_column=-4: .*a.conll line 3 has 3 columns, accepted is -3 to 2"),
    ({"tag_column": -3}, r"data.tag_column=-3: is the token's column too"),
    ({"encoding": "utf-16"}, "data.encoding='utf-16': accepted are text encodings with ASCII in it"),
    ({"on_bad_row": "drop"}, "data.on_bad_row='drop': accepted are error, skip"),
  ],
)
def test_a_bad_setting_is_one_clear_line(settings, message, tmp_path):
  (tmp_path / "a.conll").write_text(TEXT)
  with pytest.raises(ConfigError, match=message):
    len(Conll(**{"path": str(tmp_path / "a.conll"), **settings}))


def test_files_that_hold_nothing_or_end_too_early_are_one_clear_line(tmp_path):
  with pytest.raises(ConfigError, match="data.path: no sentence in .*a.conll"):
    read(tmp_path / "a.conll", "\n-DOCSTART- O\n\n")
  (tmp_path / "a.conll.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
  with pytest.raises(ConfigError, match="data.path: .*a.conll.gz' cannot be read: Compressed file ended"):
    read(tmp_path / "a.conll.gz")


def test_splits_are_cut_by_tokens_and_stay(tmp_path):
  sentences = [f"word{i // 2} O\nx {'BO'[i % 2]}\n" for i in range(600)]
  (tmp_path / "a.conll").write_text("\n".join(sentences))
  (tmp_path / "b.conll").write_text("\n".join([*sentences[::-1], *(f"more{i} O\n" for i in range(50))]))

  def split(name, split):
    conll = Conll(split, str(tmp_path / name))
    return Counter(conll[i]["text"] for i in range(len(conll)))

  first, second = ({name: split(file, name) for name in ("train", "validation", "test")} for file in ("a.conll", "b.conll"))
  assert all(first[name] <= second[name] for name in first)
  assert sum(map(len, first.values())) == 300
  assert all(set(found.values()) == {2} for found in first.values())
  assert 10 < len(first["validation"]) < 60
  assert "; validation and test cut from" in Conll(path=str(tmp_path / "a.conll")).describe()


def test_the_fingerprint_is_of_tokens_and_tags(tmp_path):
  prints = []
  for text in (TEXT, TEXT.replace("NNP", "NN"), TEXT.replace("B-PER", "O"), TEXT.replace("Peter", "Paul")):
    (tmp_path / "a.conll").write_text(text)
    prints.append(Conll(path=str(tmp_path / "a.conll")).fingerprint())
  assert prints[0] == prints[1]
  assert len(set(prints)) == 3


def test_tasks_on_text_read_the_joined_tokens(tmp_path):
  (tmp_path / "a.conll").write_text("\n".join(f"word{i} O\nx B\n" for i in range(100)))
  run = make_run("causal", data={"name": "conll", "path": str(tmp_path / "a.conll")}, cache_dir=str(tmp_path))
  source = run.source("causal", "train")
  tokens = run.tokenizer.encode(source[0]["text"])
  assert run.load("causal", "train").store.values("tokens")[1 : 1 + len(tokens)].tolist() == list(tokens)


def test_wnut17_as_it_is_published(data_dir):
  folder = data_dir / "wnut17"
  files = {"path": str(folder / "wnut17train.conll"), "validation": str(folder / "emerging.dev.conll")}
  train, dev = Conll(**files, test=files["validation"]), Conll("validation", **files)
  assert (len(train), len(dev)) == (3394, 1009)
  lines = (folder / "wnut17train.conll").read_text().split("\n")
  assert sum(len(train[i]["tokens"]) for i in range(len(train))) == sum(not line.isspace() and line != "" for line in lines)
  kinds = {tag[2:] for i in range(len(train)) for tag in train[i]["tags"] if tag != "O"}
  assert kinds == {"person", "location", "group", "creative-work", "corporation", "product"}
  for i in (0, 1000, 3393):
    first = train.locate(i)["line"] - 1
    rows = [line.split("\t") for line in lines[first : first + len(train[i]["tokens"])]]
    assert rows == [list(row) for row in zip(train[i]["tokens"], train[i]["tags"], strict=True)]


def test_cluener_written_by_characters_keeps_every_span(data_dir, tmp_path):
  spans, rows = Counter(), []
  for line in (data_dir / "cluener" / "dev.json").read_text().splitlines():
    example = json.loads(line)
    tags = ["O"] * len(example["text"])
    for kind, surfaces in example["label"].items():
      for start, stop in (place for places in surfaces.values() for place in places):
        tags[start : stop + 1] = [f"B-{kind}", *[f"I-{kind}"] * (stop - start)]
    spans.update(tag for tag in tags if tag.startswith("B-"))
    rows.append((example["text"], tags))
  file = tmp_path / "dev.bio"
  text = "\n".join("".join(f"{c}\t{tag}\n" for c, tag in zip(text, tags, strict=True)) for text, tags in rows)
  file.write_text(text, encoding="gb18030")
  conll = Conll(path=str(file), validation=str(file), test=str(file), joiner="", encoding="gb18030")
  assert Counter(conll[i]["text"] for i in range(len(conll))) == Counter(text for text, _ in rows)
  assert Counter(tag for i in range(len(conll)) for tag in conll[i]["tags"] if tag.startswith("B-")) == spans
