"""Records: every row with all its columns and its line, read a row at a time; a bad one is named by file and line."""

import pytest

from lm.config import ConfigError
from lm.data import records


def read(tmp_path, name, content, **how):
  path = tmp_path / name
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return list(records.read(path, **how))


def test_csv_rows_may_span_lines_and_blank_lines_are_none(tmp_path):
  found = read(tmp_path, "a.csv", '\ufefftext,n\r\n"one, ""two""\nthree",1\r\n\r\nfour,2\r\n')
  assert found == [(2, {"text": 'one, "two"\nthree', "n": "1"}), (5, {"text": "four", "n": "2"})]


def test_tsv_takes_quotes_as_text_where_told(tmp_path):
  assert read(tmp_path, "a.tsv", 'text\tn\n"a\tb\n', quoting=False) == [(2, {"text": '"a', "n": "b"})]
  assert read(tmp_path, "a.csv", "text;n\na;b\n", delimiter=";") == [(2, {"text": "a", "n": "b"})]


def test_other_encodings(tmp_path):
  assert read(tmp_path, "a.csv", "text\nä\n".encode("latin-1"), encoding="latin-1") == [(2, {"text": "ä"})]
  assert read(tmp_path, "a.txt", "ä\nb".encode("utf-16"), encoding="utf-16") == [(1, {"text": "ä"}), (2, {"text": "b"})]


def test_txt_keeps_blank_lines_and_jsonl_does_not(tmp_path):
  assert read(tmp_path, "a.txt", "a\n\nb\n") == [(1, {"text": "a"}), (2, {"text": ""}), (3, {"text": "b"})]
  assert read(tmp_path, "a.jsonl", '{"a": [1]}\n\n{"b": null}\n') == [(1, {"a": [1]}), (3, {"b": None})]


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("a.csv", 'text\n"a\nb\n', "line 2: .*end of data"),
    ("a.csv", "a,a\n1,2\n", "line 1: several columns are called 'a'"),
    ("a.csv", "a,b\n1,2\n3\n", "line 3: 1 cells where the first row has 2"),
    ("a.csv", b"a\nb\n\xff\n", "line 3: not utf-8-sig text"),
    ("a.jsonl", "[1]\n", "line 1: not a JSON object"),
    ("a.jsonl", '{"a": 1}\n{"a"\n', "line 2: bad JSON"),
    ("a.jsonl", '{"a": "\\ud800"}\n', "line 1: holds half a surrogate pair"),
    ("a.parquet", "no", "not a whole parquet file"),
    ("a.json", "{}", "accepted are files that end in"),
  ],
)
def test_what_cannot_be_read_is_one_line(name, content, words, tmp_path):
  with pytest.raises(ConfigError, match=words) as error:
    read(tmp_path, name, content)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "good"), [("a.csv", b"text\na\n"), ("a.jsonl", b'{"text": "a"}\n'), ("a.txt", b"a\n")])
def test_a_file_is_read_a_row_at_a_time(name, good, tmp_path):
  (tmp_path / name).write_bytes(good + b"\xff\n")
  rows = records.read(tmp_path / name)
  assert next(rows)[1] == {"text": "a"}
  with pytest.raises(ConfigError, match="not utf-8-sig text"):
    next(rows)
