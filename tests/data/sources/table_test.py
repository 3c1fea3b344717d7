"""Tables: every format, splits that depend on content alone, bad rows that are counted, errors that name setting and line."""

import gzip
import json
import re

import fsspec
import pytest

from lm.config import ConfigError
from lm.data.sources.table import Table

ROWS = [(f"text number {i}", "ab"[i % 2]) for i in range(100)]


def write_csv(path, rows, header="text,label"):
  path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
  return str(path)


def write_parquet(path, columns):
  import pyarrow
  from pyarrow import parquet

  parquet.write_table(pyarrow.table(columns), path)
  return str(path)


def examples(source):
  return [source[i] for i in range(len(source))]


def every(split="train", **options):
  """All splits' examples by text."""
  return {e["text"]: e for name in ("train", "validation", "test") for e in examples(Table(name, **options))}


def test_csv_holds_quotes_delimiters_and_line_breaks(tmp_path):
  path = tmp_path / "x.CSV"
  path.write_bytes(b'\xef\xbb\xbfid,review, stars\r\n1,"He said ""no"",\r\ntwice",3\r\n\r\n2,\xe4\xbd\xa0\xe5\xa5\xbd, 1 \r\n')
  found = every(path=str(path), text=("review",), label="stars")
  assert {text: e["label"] for text, e in found.items()} == {'He said "no",\r\ntwice': "3", "你好": "1"}


def test_tsv_without_quoting_takes_quotes_as_text(tmp_path):
  path = tmp_path / "x.tsv"
  path.write_text('a\tb\tsame\nthe "word\tits "end\t1\n"open\tb\t0\n', encoding="utf-8")
  found = examples(Table(path=str(path), text=("a", "b"), label="same", quoting=False))
  assert sorted(found, key=lambda e: e["label"]) == [
    {"text": '"open', "text_pair": "b", "label": "0"},
    {"text": 'the "word', "text_pair": 'its "end', "label": "1"},
  ]
  with pytest.raises(ConfigError, match=r"x\.tsv line 3: quotes do not pair up, data\.quoting=false.*on_bad_row"):
    len(Table(path=str(path), text=("a", "b"), label="same"))


def test_a_quote_that_swallows_lines_is_an_error_even_when_bad_rows_are_skipped(tmp_path):
  path = write_csv(tmp_path / "x.csv", [("one", "a"), ('"two', "b"), ("three", "a"), ("four", "b")])
  with pytest.raises(ConfigError, match=r"lines 3 to 5: quotes do not pair up, data\.quoting=false"):
    len(Table(path=path, label="label", on_bad_row="skip"))


def test_a_delimiter_of_ones_own(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("text;label\na, b;x\nc;y\n", encoding="utf-8")
  assert set(every(path=str(path), label="label", delimiter=";")) == {"a, b", "c"}


def test_compressed_tables(tmp_path):
  write_csv(tmp_path / "x.csv", ROWS)
  (tmp_path / "x.csv.gz").write_bytes(gzip.compress((tmp_path / "x.csv").read_bytes()))
  assert every(path=str(tmp_path / "x.csv.gz"), label="label") == every(path=str(tmp_path / "x.csv"), label="label")
  (tmp_path / "x.csv.gz").write_bytes((tmp_path / "x.csv.gz").read_bytes()[:-20])
  with pytest.raises(ConfigError, match=r"data\.path=.*x\.csv\.gz': cannot be read: Compressed file ended"):
    len(Table(path=str(tmp_path / "x.csv.gz"), label="label"))


def test_jsonl_labels_become_text(tmp_path):
  path = tmp_path / "x.jsonl"
  values = [3, 3.0, True, False, "x ", 2.5, -1]
  path.write_text("\n".join(json.dumps({"text": f"t{i}", "label": value}) for i, value in enumerate(values)) + "\n\n")
  labels = {text: e["label"] for text, e in every(path=str(path), label="label").items()}
  assert [labels[f"t{i}"] for i in range(len(values))] == ["3", "3", "true", "false", "x", "2.5", "-1"]


def test_parquet_reads_the_wanted_columns(tmp_path):
  columns = {"text": ["a", "b", None], "stars": [3.0, 4.0, 5.0], "other": [[1], [2], [3]]}
  path = write_parquet(tmp_path / "x.parquet", columns)
  source = Table(path=path, label="stars", on_bad_row="skip")
  assert sorted(examples(source), key=str) == [{"text": "a", "label": "3"}, {"text": "b", "label": "4"}]
  assert "1 of" in source.describe() and "'text' is empty" in source.describe()
  with pytest.raises(ConfigError, match=r"row 3: 'text' is empty"):
    len(Table(path=path, label="stars"))
  with pytest.raises(ConfigError, match="row 1: 'other' holds a list"):
    len(Table(path=path, text=("other",)))


def test_unlabelled_tables_give_text_only(tmp_path):
  path = write_csv(tmp_path / "x.csv", ROWS)
  assert Table(path=path).labels == ()
  assert Table(path=path)[0].keys() == {"text"}
  assert len(every(path=path)) == 100


def test_labels_are_in_the_order_of_numbers_if_all_are(tmp_path):
  path = write_csv(tmp_path / "x.csv", [(f"t{i}", str(i % 12)) for i in range(48)])
  assert Table(path=path, label="label").labels == tuple(map(str, range(12)))
  path = write_csv(tmp_path / "y.csv", [(f"t{i}", ("10", "9", "x")[i % 3]) for i in range(30)])
  assert Table(path=path, label="label").labels == ("10", "9", "x")


def test_files_of_their_own_are_taken_whole_and_in_order(tmp_path):
  path = write_csv(tmp_path / "train.csv", ROWS)
  own = write_csv(tmp_path / "own.csv", [("z", "a"), ("y", "b"), ("x", "a")])
  lengths = lambda **options: [
    len(Table(split, path=path, label="label", **options)) for split in ("train", "validation", "test")
  ]
  train, validation, test = lengths()
  assert train + validation + test == 100 and 70 <= train <= 90
  assert lengths(validation=own) == [train + validation, 3, test]
  assert lengths(test=own) == [train + test, validation, 3]
  assert lengths(validation=own, test=own) == [100, 3, 3]
  validation = Table("validation", path=path, validation=own, label="label")
  assert [e["text"] for e in examples(validation)] == ["z", "y", "x"]


def test_bad_rows_are_an_error_or_counted_by_reason(tmp_path):
  bad = [("only one cell",), ("too", "many", "cells"), ("", "a"), ("no label", " "), ('"quote" d', "a")]
  for row in bad:
    path = write_csv(tmp_path / "x.csv", [*ROWS[:3], row])
    with pytest.raises(ConfigError, match=r"x\.csv line 5: .*on_bad_row=skip leaves such rows out") as error:
      len(Table(path=path, label="label"))
    assert "\n" not in str(error.value)
  path = write_csv(tmp_path / "x.csv", [*ROWS, *bad, ("\t", "b")])
  source = Table(path=path, label="label", on_bad_row="skip")
  assert len(every(path=path, label="label", on_bad_row="skip")) == 100
  for words in ("2 of", "'text' is empty", "'label' is empty", "1 cells where", "3 cells where", "quotes do not pair up"):
    assert words in source.describe()


def test_bad_json_is_named_by_line(tmp_path):
  path = tmp_path / "x.jsonl"
  lines = ['{"text": "a", "label": 1}', '{"text": "b", "label": 2}']
  for bad, words in (("{", "bad JSON"), ("[1]", "not a JSON object"), ('{"text": "a"}', "'label' is empty")):
    path.write_text("\n".join([*lines, "", bad]))
    with pytest.raises(ConfigError, match=f"line 4: {words}"):
      len(Table(path=str(path), label="label"))
  path.write_text("\n".join([*lines, r'{"text": "\ud800", "label": 1}']))
  with pytest.raises(ConfigError, match="line 3: holds half a surrogate"):
    len(Table(path=str(path), label="label"))


def test_a_file_without_a_good_row_says_why(tmp_path):
  path = write_csv(tmp_path / "x.csv", [("", "a"), ("", "b")])
  with pytest.raises(ConfigError, match=r"no row is left; bad: 'text' is empty \(2\)"):
    len(Table(path=path, label="label", on_bad_row="skip"))
  with pytest.raises(ConfigError, match="no row in the file"):
    len(Table(path=write_csv(tmp_path / "x.csv", []), label="label"))


def test_labels_that_training_never_saw_are_listed(tmp_path):
  path = write_csv(tmp_path / "train.csv", ROWS)
  own = write_csv(tmp_path / "own.csv", [("x", "a"), ("y", "q"), ("z", "r")])
  with pytest.raises(ConfigError, match=r"data\.test='.*own\.csv': labels that no row of data\.path=.*: 'q', 'r'"):
    len(Table(path=path, test=own, label="label"))


def test_describe_counts_rows_and_labels(tmp_path):
  rows = [(f"t{i}", f"label{i % 14}") for i in range(140)]
  path = write_csv(tmp_path / "x.csv", rows)
  text = Table(path=path, label="label").describe()
  train, validation, test = (len(Table(split, path=path, label="label")) for split in ("train", "validation", "test"))
  assert f"train {train}, validation {validation}, test {test} rows; validation and test cut from" in text
  assert "14 labels in train" in text and "and 4 more" in text and "left out" not in text


def test_held_out_splits_that_tell_little_are_said_in_a_line_each(tmp_path):
  path = write_csv(tmp_path / "x.csv", [(f"t{i}", "ab"[i % 2]) for i in range(600)])
  few = write_csv(tmp_path / "few.csv", [(f"u{i}", "a") for i in range(29)])
  enough = write_csv(tmp_path / "enough.csv", [(f"v{i}", "ab"[i % 2]) for i in range(30)])
  said = lambda **files: [
    line for line in Table(path=path, label="label", **files).describe().splitlines() if "warning" in line
  ]
  assert said(validation=enough, test=enough) == []
  (line,) = said(validation=few, test=enough)
  assert line.startswith(
    "  warning: validation lacks 'b' and has few rows (29), so its figures are rough; data.validation=FILE"
  )
  alone = Table(path=write_csv(tmp_path / "y.csv", ROWS[:2]), label="label")
  assert "warning" not in alone.describe()


def test_a_changed_file_is_read_again_and_an_equal_one_is_not(tmp_path, monkeypatch):
  from lm.data import rows

  path = write_csv(tmp_path / "x.csv", ROWS)
  before = Table(path=path, label="label").fingerprint()
  with monkeypatch.context() as without_readers:
    without_readers.setattr(rows, "READERS", dict.fromkeys(rows.READERS))
    assert Table(path=path, label="label").fingerprint() == before
    assert len(Table("test", path=path, label="label")) > 0
  write_csv(tmp_path / "x.csv", [*ROWS, ("one more", "a")])
  assert "one more" in every(path=path, label="label")


def test_fingerprint_follows_columns_and_content_and_no_row_order(tmp_path):
  rows = [(f"t{i}", f"u{i}", "ab"[i % 2]) for i in range(30)]
  path = write_csv(tmp_path / "x.csv", rows, "a,b,c")
  options = [{"text": ("a",)}, {"text": ("b",)}, {"text": ("a", "b")}, {"text": ("a",), "label": "c"}]
  assert len({Table(path=path, **each).fingerprint() for each in options}) == 4
  relabelled = write_csv(tmp_path / "z.csv", [(a, b, "ba"[c == "b"]) for a, b, c in rows], "a,b,c")
  assert Table(path=relabelled, **options[3]).fingerprint() != Table(path=path, **options[3]).fingerprint()
  turned = write_csv(tmp_path / "y.csv", rows[::-1], "a,b,c")
  assert Table(path=turned, **options[3]).fingerprint() == Table(path=path, **options[3]).fingerprint()


def test_errors_name_setting_and_value(tmp_path):
  path = write_csv(tmp_path / "x.csv", ROWS, "review,stars")
  (tmp_path / "latin.csv").write_bytes(b"\xef\xbb\xbftext\ncaf\xe9\n")
  (tmp_path / "not.parquet").write_bytes(b"PAR")
  (tmp_path / "x.xlsx").write_bytes(b"")
  twice = write_csv(tmp_path / "twice.csv", ROWS, "text,text")
  latin, lines = str(tmp_path / "latin.csv"), tmp_path / "x.jsonl"
  lines.write_text('{"body": "a"}\n')
  cases = [
    ({}, r"data\.path='': not set; accepted.*\.csv, \.tsv, \.jsonl, \.json, \.parquet"),
    ({"path": "missing.csv"}, r"data\.path='missing\.csv': no such file"),
    ({"path": str(tmp_path / "x.xlsx")}, r"data\.path=.*x\.xlsx': accepted are files that end in \.csv"),
    ({"path": path, "test": "no.csv"}, r"data\.test='no\.csv': no such file"),
    ({"path": path, "text": ("reviews",)}, r"data\.text='reviews': no such column in .*nearest first: 'review', 'stars'"),
    ({"path": path, "text": ("review",), "label": "star"}, r"data\.label='star': no such column.*: 'stars', 'review'"),
    ({"path": str(lines), "text": ("text",)}, r"data\.text='text': no such column.*'body'"),
    ({"path": twice}, r"data\.text='text': .* has 2 columns of that name"),
    ({"path": latin}, r"data\.path=.*latin\.csv': byte 11 is not utf-8-sig text; accepted is another data\.encoding"),
    ({"path": str(tmp_path / "not.parquet")}, r"not\.parquet': not a whole parquet file"),
    ({"path": path, "text": ()}, r"data\.text=.*one column, or two"),
    ({"path": path, "examples_per_label": 5}, r"data\.examples_per_label=5: accepted is 0 for all rows, or .* data\.label"),
    ({"path": path, "text": ("a", "a")}, r"data\.text=.*one column, or two"),
    ({"path": path, "text": ("a",), "label": "a"}, r"data\.text=.*other than data\.label"),
    ({"path": path, "on_bad_row": "drop"}, r"data\.on_bad_row='drop': accepted are error, skip"),
    ({"path": path, "delimiter": "::"}, r"data\.delimiter='::'"),
    ({"path": path, "encoding": "utf9"}, r"data\.encoding='utf9'"),
    ({"path": path, "split": "dev"}, r"data\.split='dev'"),
    ({"path": str(lines), "quoting": False}, r"data\.quoting=False: no effect"),
  ]
  for options, message in cases:
    with pytest.raises(ConfigError, match=message) as error:
      len(Table(**options))
    assert "\n" not in str(error.value)


def test_another_encoding_is_read(tmp_path):
  for encoding in ("cp1252", "utf-16"):
    (tmp_path / "x.csv").write_bytes("text\ncafé\n".encode(encoding))
    assert list(every(path=str(tmp_path / "x.csv"), encoding=encoding)) == ["café"]


def test_held_out_texts_that_stand_in_train_are_counted(tmp_path):
  path = write_csv(tmp_path / "x.csv", ROWS)
  said = Table(path=path, validation=path, label="label").describe()
  assert "validation rows have a text that stands in train too" in said
  assert "stands in train" not in Table(path=path, label="label").describe()


def test_an_example_is_found_again_in_its_file(tmp_path):
  path = write_csv(tmp_path / "x.csv", [*ROWS, ('"over two\nlines"', "a"), ("last", "b")])
  own = write_csv(tmp_path / "own.csv", [("first", "a"), ("second", "b")])
  found = 0
  for split in ("train", "test"):
    source = Table(split, path=path, validation=own, label="label")
    for i in range(len(source)):
      place = source.locate(i)
      line = (tmp_path / "x.csv").read_text().split("\n")[place["line"] - 1]
      assert place["file"] == path and line.strip('"').startswith(source[i]["text"].split("\n")[0])
      found += 1
  assert found == 102
  assert Table("validation", path=path, validation=own, label="label").locate(1) == {"file": own, "line": 3}
  columns = write_parquet(tmp_path / "x.parquet", {"text": ["a"], "label": ["b"]})
  assert Table(path=columns, label="label").locate(0) == {"file": columns, "row": 1}


def test_labels_that_are_numbers_are_numbers_and_decide_no_split(tmp_path):
  rows = [(f"text number {i}", f"{i / 7:.4f}") for i in range(200)]
  path = write_csv(tmp_path / "x.csv", rows)
  of = lambda split, **more: Table(split, path=path, label="label", label_type="number", **more)
  found = {split: {e["text"]: e["label"] for e in examples(of(split))} for split in ("train", "validation", "test")}
  assert {text: label for part in found.values() for text, label in part.items()} == {t: float(x) for t, x in rows}
  assert min(map(len, found.values())) > 10
  assert of("test").numbers == tuple(sorted(found["train"].values())) and of("train").labels == ()
  assert "'label' in train: mean 14" in of("train").describe()
  other = write_csv(tmp_path / "y.csv", [("another", "99.5")])
  assert of("test", test=other)[0] == {"text": "another", "label": 99.5}


@pytest.mark.parametrize("label", ["good", "nan", "-inf"])
def test_a_label_that_is_no_number_is_a_bad_row(label, tmp_path):
  path = write_csv(tmp_path / "x.csv", [("a", "1"), ("b", label), ("c", "2")])
  with pytest.raises(ConfigError, match=r"x.csv line 3: 'label' is no number; data.on_bad_row=skip"):
    len(Table(path=path, label="label", label_type="number"))
  assert len(every(path=path, label="label", label_type="number", on_bad_row="skip")) == 2


def test_a_label_type_is_known_and_has_a_label(tmp_path):
  path = write_csv(tmp_path / "x.csv", ROWS)
  with pytest.raises(ConfigError, match="data.label_type='real': accepted are class, number"):
    Table(path=path, label="label", label_type="real")
  with pytest.raises(ConfigError, match="data.label_type='number': no effect; data.label names no column"):
    Table(path=path, label_type="number")


def test_columns_are_named_for_files_without_a_line_of_names(tmp_path):
  path = write_csv(tmp_path / "x.csv", [("two", "b"), ("three", "a")], header="one,b")
  found = examples(Table(path=path, columns=("said", "kind"), text=("said",), label="kind", validation=path, test=path))
  assert {example["text"]: example["label"] for example in found} == {"one": "b", "two": "b", "three": "a"}
  with pytest.raises(ConfigError, match=r"x.csv line 1: 2 cells where data.columns has 3"):
    every(path=path, columns=("text", "other", "label"))
  with pytest.raises(ConfigError, match=r"data.label='x': no such column in .*the nearest first: 'a', 'text'|'text', 'a'"):
    every(path=path, columns=("text", "a"), label="x")
  with pytest.raises(ConfigError, match="data.columns=.*: a name stands twice"):
    Table(path=path, columns=("text", "text"))
  with pytest.raises(ConfigError, match="data.columns=.*: no effect; only .csv"):
    Table(path=write_parquet(tmp_path / "x.parquet", {"text": ["a"]}), columns=("text",))


def test_labels_that_are_lists_are_parted_and_may_be_none(tmp_path):
  path = write_csv(tmp_path / "x.csv", [("a", "x| y"), ("b", " "), ("c", "y|x|y|")])
  read = lambda path, **more: {
    text: e["label"] for text, e in every(path=path, label="label", label_type="list", **more).items()
  }
  expected = {"a": ["x", "y"], "b": [], "c": ["y", "x"]}
  assert read(path) == expected
  rows = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": None}, {"text": "c", "label": ["y", "x"]}]
  (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  assert read(str(tmp_path / "x.jsonl")) == expected
  assert read(write_csv(tmp_path / "y.csv", [("a", "x;y"), ("b", "")]), label_separator=";") == {"a": ["x", "y"], "b": []}
  files = {"path": path, "validation": path, "test": path}
  assert Table(**files, label="label", label_type="list").labels == ("x", "y")


@pytest.mark.parametrize(
  ("label", "reason"), [(["x|y"], "a label with '|' in it"), ([["x"]], "something that is no label"), ([""], "is no label")]
)
def test_a_list_with_something_that_is_no_label_is_a_bad_row(label, reason, tmp_path):
  (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a", "label": label}) + "\n")
  with pytest.raises(ConfigError, match=rf"x\.jsonl line 1: 'label' .*{re.escape(reason)}"):
    len(Table(path=str(tmp_path / "x.jsonl"), label="label", label_type="list"))
  with pytest.raises(ConfigError, match="data.label_separator=';': no effect without data.label_type=list"):
    Table(path=str(tmp_path / "x.jsonl"), label="label", label_separator=";")


def test_a_remote_table_is_read_through_fsspec_and_again_once_it_changed():
  files, rows = fsspec.filesystem("memory"), "text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(30))
  files.pipe({"/tables/a.csv": rows.encode()})
  first = Table(path="memory://tables/a.csv", label="label")
  assert first.labels == ("0", "1") and len(first) > 15
  files.pipe({"/tables/a.csv": rows.replace(",1", ",2").encode()})
  assert Table(path="memory://tables/a.csv", label="label").labels == ("0", "2")
