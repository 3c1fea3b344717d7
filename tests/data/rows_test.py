"""Every row with all its columns and its line, read a row at a time; a bad one is a value, a bad file one line."""

import gzip

import pytest

from lm.config import ConfigError
from lm.data.rows import RowFile


def read(tmp_path, name, content, **how):
  path = tmp_path / name
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return list(RowFile(str(path), **how).rows([]))


def test_csv_rows_may_span_lines_and_blank_lines_are_none(tmp_path):
  found = read(tmp_path, "a.csv", '\ufefftext,n\r\n"one, ""two""\nthree",1\r\n\r\nfour,2\r\n')
  assert found == [(2, {"text": 'one, "two"\nthree', "n": "1"}), (5, {"text": "four", "n": "2"})]


def test_tsv_takes_quotes_as_text_where_told(tmp_path):
  assert read(tmp_path, "a.tsv", 'text\tn\n"a\tb\n', quoting=False) == [(2, {"text": '"a', "n": "b"})]
  assert read(tmp_path, "a.csv", "text;n\na;b\n", delimiter=";") == [(2, {"text": "a", "n": "b"})]
  assert read(tmp_path, "a.csv", "text\tn\na\tb\n", delimiter=r"\t") == [(2, {"text": "a", "n": "b"})]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_seen_where_a_column_is_missing(delimiter, tmp_path):
  (tmp_path / "a.csv").write_text(f"text{delimiter}n\na{delimiter}b\n")
  for prefix in ("data.", "--"):
    with pytest.raises(ConfigError) as error:
      list(RowFile(str(tmp_path / "a.csv"), prefix=prefix).rows([("data.text", "text")]))
    assert str(error.value).endswith(f"; did you mean {prefix}delimiter={delimiter!r}?")


def test_other_encodings(tmp_path):
  assert read(tmp_path, "a.csv", "text\nä\n".encode("latin-1"), encoding="latin-1") == [(2, {"text": "ä"})]
  assert read(tmp_path, "a.txt", "ä\nb".encode("utf-16"), encoding="utf-16") == [(1, {"text": "ä"}), (2, {"text": "b"})]


def test_txt_keeps_blank_lines_and_jsonl_does_not(tmp_path):
  assert read(tmp_path, "a.txt", "a\n\nb\n") == [(1, {"text": "a"}), (2, {"text": ""}), (3, {"text": "b"})]
  assert read(tmp_path, "a.jsonl", '{"a": [1]}\n\n{"b": null}\n') == [(1, {"a": [1]}), (3, {"b": None})]


def test_json_may_be_one_list_whose_rows_are_counted(tmp_path):
  rows = [(1, {"a": [1]}), (2, "not a JSON object"), (3, {"a": "é"})]
  assert read(tmp_path, "a.json", '\n [{"a": [1]},\n 3, {"a": "\\u00e9"}]\n') == rows
  assert RowFile(str(tmp_path / "a.json")).where(3).endswith("a.json row 3")
  assert read(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n') == [(1, {"a": 1}), (2, {"a": 2})]
  assert RowFile(str(tmp_path / "a.json")).where(2).endswith("a.json line 2")
  assert read(tmp_path, "a.json", '[{"a": "\\ud800"}]') == [(1, "holds half a surrogate pair")]


@pytest.mark.parametrize(
  ("name", "content", "row"),
  [
    ("a.csv", "a,b\n1,2\n3\n", (3, "1 cells where the first row has 2")),
    ("a.jsonl", "[1]\n", (1, "not a JSON object")),
    ("a.json", '{"text": "a"}\n[\n', (2, "bad JSON (Expecting value)")),
    ("a.jsonl", '{"a": 1}\n{"a"\n', (2, "bad JSON (Expecting ':' delimiter)")),
    ("a.jsonl", '{"a": "\\ud800"}\n', (1, "holds half a surrogate pair")),
  ],
)
def test_a_bad_row_is_said(name, content, row, tmp_path):
  assert read(tmp_path, name, content)[-1] == row


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("a.csv", 'text\n"a\nb\n', "lines 2 to 3: quotes do not pair up.*end of data"),
    ("a.csv", b"a\nb\n\xff\n", "byte 4 is not utf-8-sig text"),
    ("a.parquet", "no", "not a whole parquet file"),
    ("a.json", '[{"a": 1},\n{"a"]', "a list that is bad JSON .Expecting ':' delimiter, line 2"),
    ("a.xml", "<a/>", "accepted are files that end in"),
    ("a.csv.xz", "no archive", "cannot be read: Input format not supported"),
    ("a.csv.gz", gzip.compress(b"")[:10] + b"\xff" * 20, "cannot be read: Error -3 while decompressing"),
  ],
)
def test_what_cannot_be_read_is_one_line(name, content, words, tmp_path):
  with pytest.raises(ConfigError, match=words) as error:
    read(tmp_path, name, content)
  assert "\n" not in str(error.value)


def test_columns_of_one_name_are_told_apart_unless_one_is_wanted(tmp_path):
  assert read(tmp_path, "a.csv", "a,b,a\n1,2,3\n") == [(2, {"a": "1", "b": "2", "a_2": "3"})]
  with pytest.raises(ConfigError, match="data.text='a': .* has 2 columns of that name"):
    list(RowFile(str(tmp_path / "a.csv")).rows([("data.text", "a")]))


def test_a_column_of_jsonl_may_be_left_out_of_a_row_but_not_of_all(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
  file = RowFile(str(tmp_path / "a.jsonl"))
  assert list(file.rows([("data.label", "b")])) == [(1, {"a": 1, "b": None}), (2, {"b": 2})]
  with pytest.raises(ConfigError, match="data.label='c': no such column.*'a'"):
    list(file.rows([("data.label", "c")]))


@pytest.mark.parametrize(("name", "row"), [("a.csv", "a\n"), ("a.jsonl", '{"text": "a"}\n'), ("a.txt", "a\n")])
def test_a_file_is_read_a_row_at_a_time(name, row, tmp_path):
  many = ("text\n" if name == "a.csv" else "") + row * 100_000
  (tmp_path / name).write_bytes(many.encode() + b"\xff\n")
  rows = RowFile(str(tmp_path / name)).rows([])
  assert next(rows)[1] == {"text": "a"}
  with pytest.raises(ConfigError, match=f"byte {len(many)} is not utf-8-sig text"):
    list(rows)
