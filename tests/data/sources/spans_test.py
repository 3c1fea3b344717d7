"""Spans in JSON lines: what they become, and every bad one said with its file and line."""

import json
import re
from collections import Counter

import pytest

from lm.config import ConfigError
from lm.data import tagging
from lm.data.sources.spans import Spans

LINE = {"text": "浙商银行的 Tom Lee", "label": {"company": {"浙商银行": [[0, 3]]}, "name": {"Tom Lee": [[6, 12]]}}}


def make(tmp_path, *rows, **options):
  file = tmp_path / "a.json"
  file.write_text("".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
  return Spans(path=(str(file),), validation=(str(file),), test=(str(file),), **options)


def test_characters_have_the_tags_of_their_spans(tmp_path):
  (found,) = make(tmp_path, LINE, "\n")
  assert found["text"] == LINE["text"]
  assert found["tokens"] == list("浙商银行的TomLee")
  assert found["tags"] == ["B-company", *["I-company"] * 3, "O", "B-name", *["I-name"] * 5]
  assert found["id"].endswith("a.json:1")
  places = tagging.find_words(found["text"], found["tokens"])
  spans = {(kind, found["text"][places[first][0] : places[stop - 1][1]]) for kind, first, stop in tagging.read(found["tags"])}
  assert spans == {("company", "浙商银行"), ("name", "Tom Lee")}


def test_words_may_have_them_too_and_a_line_without_spans_has_none(tmp_path):
  (found,) = make(tmp_path, LINE, words="word")
  assert found["tokens"] == ["浙", "商", "银", "行", "的", "Tom", "Lee"]
  assert found["tags"][-2:] == ["B-name", "I-name"]
  source = make(tmp_path, {"text": "a b"}, {"text": "c", "label": {}})
  assert [set(source[i]["tags"]) for i in range(2)] == [{"O"}, {"O"}]
  assert source.tags == ("O",)


BAD = [
  ({"name": {"Tom": [[6, 9]]}}, "'label': name 'Tom' is not what stands at [6, 9] ('Tom ')"),
  ({"name": {"Tom": [[16, 18]]}}, "'label': name 'Tom' is not what stands at [16, 18] ('')"),
  ({"name": {"": [[6, 5]]}}, "'label': name '' is not what stands at [6, 5] ('')"),
  ({"name": {"Tom": [6, 8]}}, "'label': name 'Tom' has [6, 8], expected [[start, last], ...]"),
  ({"name": {"Tom": [[-7, -5]]}}, "'label': name 'Tom' has [[-7, -5]], expected [[start, last], ...]"),
  ({"name": {"Tom": [[6, 8]]}, "x": {"om": [[7, 8]]}}, "'label': x 'om' overlaps the span before it"),
  ({"name": {"Tom Lee": [[6, 12]], "Lee": [[10, 12]]}}, "'label': name 'Lee' overlaps the span before it"),
  ({"name": {" Tom": [[5, 8]]}}, "'label': name ' Tom' starts or ends inside a word"),
  ([[6, 9, "name"]], "'label': is not of the form {type: {surface: [[start, last], ...]}}"),
]


@pytest.mark.parametrize(("label", "reason"), BAD)
def test_a_bad_span_is_an_error_with_file_and_line_or_counted(label, reason, tmp_path):
  rows = [LINE, LINE | {"label": label}]
  with pytest.raises(ConfigError, match=re.escape(f"a.json line 2: {reason}; data.on_bad_row=skip")):
    len(make(tmp_path, *rows))
  source = make(tmp_path, *rows, on_bad_row="skip")
  assert len(source) == 1
  assert "sentences with a bad row left out" in source.describe()


@pytest.mark.parametrize(
  ("row", "reason"),
  [("{\n", "bad JSON"), ("[1]\n", "not a JSON object"), ({"text": " "}, "'text' is empty or no text"), ({}, "'text' is")],
)
def test_a_line_that_is_no_sentence_is_told(row, reason, tmp_path):
  with pytest.raises(ConfigError, match=f"a.json line 2: {reason}"):
    len(make(tmp_path, LINE, row))


def test_settings_are_checked(tmp_path):
  with pytest.raises(ConfigError, match="data.words='char': accepted are word, space, character"):
    make(tmp_path, LINE, words="char")
  with pytest.raises(ConfigError, match="data.path='': not set; accepted are files.*'train.json'"):
    Spans()
  with pytest.raises(ConfigError, match="line 1: 'letters' is empty or no text"):
    len(make(tmp_path, LINE, text="letters"))


def test_cluener_as_it_is_published(data_dir):
  file = data_dir / "cluener" / "dev.json"
  source = Spans("validation", path=(str(file),), validation=(str(file),), test=(str(file),))
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(source) == len(rows) == 1343
  expected = Counter(
    (kind, surface) for row in rows for kind, found in row["label"].items() for surface, places in found.items() for _ in places
  )
  found = Counter()
  for i in range(len(source)):
    example = source[i]
    places = tagging.find_words(example["text"], example["tokens"])
    for kind, first, stop in tagging.read(example["tags"]):
      found[kind, example["text"][places[first][0] : places[stop - 1][1]]] += 1
  assert found == expected
