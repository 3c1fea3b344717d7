"""Predictions of files: one line per row in its order, and a killed call leaves what the next one needs, to the byte."""

import json

import jax
import numpy as np
import pytest

from lm import predict, predictor, train
from lm.config import ConfigError
from tests.conftest import TEXTS, make_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  train.train(make_run("classify", total_steps=2, seq_len=128), folder)
  return predictor.load(folder, devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(predict, "CHUNK", 8)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def write_csv(path, texts=TEXTS):
  path.write_text("id,text,label\n" + "".join(f'r{i},"{text}",{i % 2}\n' for i, text in enumerate(texts)))
  return path


class Killed(BaseException):
  """What no handler of the code may catch."""


def test_a_line_has_id_columns_and_prediction_in_the_order_of_the_rows(model, tmp_path):
  out = tmp_path / "sub" / "out.jsonl"
  assert predict.predict_file(model, write_csv(tmp_path / "in.csv"), out, batch_size=4) == len(TEXTS)
  expected = model.predict(TEXTS, batch_size=4)
  for i, (line, text) in enumerate(zip(lines(out), TEXTS, strict=True)):
    assert list(line) == ["id", "text", "input_label", "label", "scores"]
    assert (line["id"], line["text"], line["input_label"]) == (f"r{i}", text, str(i % 2))
    assert line["label"] == expected[i]["label"]
    np.testing.assert_allclose(list(line["scores"].values()), list(expected[i]["scores"].values()), atol=1e-5)


def test_a_column_called_like_a_prediction_or_like_its_new_name_is_kept(model, tmp_path):
  (tmp_path / "in.csv").write_text("text,label,input_label\na,1,2\n")
  predict.predict_file(model, tmp_path / "in.csv", tmp_path / "out.jsonl")
  (line,) = lines(tmp_path / "out.jsonl")
  assert (line["input_label"], line["input_input_label"]) == ("1", "2")


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet", ".txt"])
def test_every_format_gives_the_same_predictions(suffix, model, tmp_path):
  import pyarrow
  from pyarrow import parquet

  texts, file = [f"word {i}, täxt" for i in range(10)], tmp_path / f"in{suffix}"
  if suffix == ".parquet":
    parquet.write_table(pyarrow.table({"text": texts, "n": [float("nan")] * 10}), file)
  elif suffix == ".tsv":
    file.write_text("text\tn\n" + "".join(f"{text}\t1\n" for text in texts), encoding="utf-8-sig")
  elif suffix == ".jsonl":
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
  else:
    file.write_text("\n".join(texts))
  predict.predict_file(model, file, tmp_path / "out.jsonl")
  found = lines(tmp_path / "out.jsonl")
  assert [line["text"] for line in found] == texts
  assert [line["id"] for line in found] == list(range(10))
  assert [line["label"] for line in found] == [row["label"] for row in model.predict(texts)]
  assert found[0].get("n") in (None, "1")


@pytest.mark.parametrize("cut", [0, 1, 2_000, 5_000])
@pytest.mark.parametrize("kill_after", [0, 1, 3])
def test_killed_and_resumed_is_byte_identical(kill_after, cut, model, tmp_path, monkeypatch):
  file = write_csv(tmp_path / "in.csv")
  whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
  predict.predict_file(model, file, whole, batch_size=4)
  append, calls = predict._append, []

  def killed(output, size, data):
    calls.append(append(output, size, data[: len(data) // 2] if len(calls) == kill_after else data))
    if len(calls) > kill_after:
      raise Killed
    return calls[-1]

  with monkeypatch.context() as patch, pytest.raises(Killed):
    patch.setattr(predict, "_append", killed)
    predict.predict_file(model, file, parts, batch_size=4)
  with parts.open("r+b") as out:
    out.truncate(max(parts.stat().st_size - cut, 0))
  seen = []
  compute = model.predict_counted
  monkeypatch.setattr(type(model), "predict_counted", lambda _, texts, *rest: seen.append(len(texts)) or compute(texts, *rest))
  assert predict.predict_file(model, file, parts, batch_size=4) == len(TEXTS)
  assert parts.read_bytes() == whole.read_bytes()
  assert cut or seen == [8] * (5 - kill_after)  # what was whole is not predicted again


def test_a_finished_output_says_so_and_is_left_alone(model, tmp_path, capsys, monkeypatch):
  file, out = write_csv(tmp_path / "in.csv"), tmp_path / "out.jsonl"
  predict.predict_file(model, file, out)
  before = out.read_bytes(), out.stat().st_mtime_ns
  monkeypatch.setattr(type(model), "predict_counted", None)
  assert predict.predict_file(model, file, out) == len(TEXTS)
  assert "finished, 40 rows; nothing to do" in capsys.readouterr().out
  assert (out.read_bytes(), out.stat().st_mtime_ns) == before


def test_an_output_of_something_else_is_not_continued(model, tmp_path):
  file, out = write_csv(tmp_path / "in.csv"), tmp_path / "out.jsonl"
  predict.predict_file(model, file, out)
  before = out.read_bytes()
  other = write_csv(tmp_path / "other.csv", TEXTS[1:])
  with pytest.raises(ConfigError, match="made with another input; choose another output"):
    predict.predict_file(model, other, out)
  with pytest.raises(ConfigError, match="made with another text"):
    predict.predict_file(model, file, out, text=("id",))
  import dataclasses

  tuned = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf + 1, model.params))
  with pytest.raises(ConfigError, match="made with another model"):
    predict.predict_file(tuned, file, out)
  (tmp_path / "out.jsonl.origin.json").unlink()
  with pytest.raises(ConfigError, match="no out.jsonl.origin.json that says"):
    predict.predict_file(model, file, out)
  with pytest.raises(ConfigError, match="is the input as well"):
    predict.predict_file(model, file, file)
  assert out.read_bytes() == before


def test_cut_texts_are_counted_over_the_whole_file(model, tmp_path):
  (tmp_path / "in.txt").write_text("\n".join(["x" * 300, *["short"] * 10, "y" * 300]))
  with pytest.warns(UserWarning, match="2 of 12 texts are longer than the run's 128 tokens"):
    predict.predict_file(model, tmp_path / "in.txt", tmp_path / "out.jsonl")


def test_text_columns_are_those_of_the_runs_data_unless_named(model, tmp_path):
  import dataclasses

  (tmp_path / "in.jsonl").write_text('{"title": "one", "body": "two"}\n')
  trained = dataclasses.replace(model, data={"classify": {"text": "body", "label": "kind"}})
  predict.predict_file(trained, tmp_path / "in.jsonl", tmp_path / "a.jsonl")
  predict.predict_file(model, tmp_path / "in.jsonl", tmp_path / "b.jsonl", text=("title",))
  scores = lambda name: lines(tmp_path / name)[0]["scores"]
  assert scores("a.jsonl") == pytest.approx(model.predict(["two"])[0]["scores"], abs=1e-6)
  assert scores("b.jsonl") == pytest.approx(model.predict(["one"])[0]["scores"], abs=1e-6)


def test_a_model_whose_data_nobody_knows_reads_the_column_text(model, tmp_path):
  import dataclasses

  predict.predict_file(dataclasses.replace(model, data={}), write_csv(tmp_path / "in.csv"), tmp_path / "out.jsonl")
  assert [line["text"] for line in lines(tmp_path / "out.jsonl")] == list(TEXTS)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    ("in.csv", b"body,n\na,1\n", r"--text='text': no such column in .*in\.csv; its columns, the nearest first: 'n', 'body'"),
    ("in.csv", b"text;n\na;1\n", r"--text='text': no such .*; did you mean --delimiter=';'\?"),
    ("in.csv", b"text\n\xff\n", r"accepted is another --encoding"),
    ("in.csv", b'text\n"a\nb\n', r"--quoting=false takes them as text"),
    ("in.csv", b"text\na\nb,c\n", r"in\.csv line 3: 2 cells where the first row has 1; 1 of 2 rows is bad.*--on_bad_row=skip"),
    ("in.csv", b'text,n\na,1\n"",2\n ,3\n', r"in\.csv line 3: 'text' is empty; 2 of 3 rows are bad"),
    ("in.csv", b"text\n", "has no rows"),
    ("in.jsonl", b'{"text": "a"}\n{"text": \n', r"in\.jsonl line 2: bad JSON"),
    ("in.jsonl", b'{"text": [3]}\n', r"in\.jsonl line 1: 'text' holds a list"),
    ("in.jsonl", b'{"text": null}\n', r"in\.jsonl line 1: 'text' is empty"),
    ("in.xml", b"<a/>", r"accepted are files that end in \.csv"),
    ("in.jsonl", None, "no such file"),
  ],
)
def test_bad_rows_are_one_line_and_nothing_is_written(name, content, words, model, tmp_path):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ConfigError, match=words) as error:
    predict.predict_file(model, tmp_path / name, tmp_path / "sub" / "out.jsonl")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "sub").exists()


def test_bad_rows_keep_their_place_where_they_are_skipped(model, tmp_path, capsys):
  file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  good = [json.dumps({"text": text}) for text in TEXTS[:20]]
  file.write_text("\n".join([*good[:3], "bad", '{"text": " ", "n": 1}', *good[3:]]))
  assert predict.predict_file(model, file, out, on_bad_row="skip") == 22
  assert "in.jsonl line 4: bad JSON" in capsys.readouterr().err
  found = lines(out)
  assert found[3] == {"id": 3, "error": "bad JSON (Expecting value)"}
  assert found[4] == {"id": 4, "text": " ", "n": 1, "error": "'text' is empty"}
  expected = [row["label"] for row in model.predict(TEXTS[:20])]
  assert [row["label"] for row in found if "error" not in row] == expected
  import dataclasses

  trained = dataclasses.replace(model, data={"classify": {"on_bad_row": "skip"}})
  assert predict.predict_file(trained, file, tmp_path / "as_the_run.jsonl") == 22


def test_how_rows_are_read_can_be_given(model, tmp_path):
  file = tmp_path / "in.csv"
  file.write_bytes('review;n\n"caf\xe9;1\n'.encode("cp1252"))
  how = {"text": "review", "encoding": "cp1252", "delimiter": ";", "quoting": "false"}
  predict.predict_file(model, file, tmp_path / "out.jsonl", **how)
  assert lines(tmp_path / "out.jsonl")[0]["review"] == '"caf\xe9'
  with pytest.raises(ConfigError, match="made with another quoting"):
    predict.predict_file(model, file, tmp_path / "out.jsonl", **how | {"quoting": "true"})


@pytest.mark.parametrize(
  ("how", "words"),
  [
    ({"text": "a,b"}, "--text=a,b: the run's task reads one column"),
    ({"encoding": "utf9"}, "--encoding='utf9': accepted are text encodings"),
    ({"delimiter": "::"}, "--delimiter='::': accepted is one character"),
    ({"quoting": "no"}, "--quoting: expected true or false, got 'no'"),
    ({"on_bad_row": "drop"}, "--on_bad_row='drop': accepted are error, skip"),
    ({"columns": "a"}, "unknown option 'columns'; there are text, encoding"),
  ],
)
def test_another_way_of_reading_is_one_line(how, words, model, tmp_path):
  (tmp_path / "in.csv").write_text("text\na\n")
  with pytest.raises(ConfigError, match=words):
    predict.predict_file(model, tmp_path / "in.csv", tmp_path / "out.jsonl", **how)


@pytest.mark.parametrize("name", ["out.csv", "out", "out.parquet"])
def test_an_output_that_promises_another_format_is_refused(name, model, tmp_path):
  (tmp_path / "in.txt").write_text("a")
  with pytest.raises(
    ConfigError, match=f"--output=.*{name}: a JSON object per line is written; accepted are .* .jsonl or .json"
  ):
    predict.predict_file(model, tmp_path / "in.txt", tmp_path / name)


def test_progress_and_where_it_goes_on_are_said(model, tmp_path, capsys, monkeypatch):
  file, out = write_csv(tmp_path / "in.csv"), tmp_path / "out.jsonl"
  monkeypatch.setattr(predict, "SAY_EVERY", 0.0)
  predict.predict_file(model, file, out)
  assert "8 of 40 rows\n16 of 40 rows\n" in capsys.readouterr().err
  out.write_text("".join(out.read_text().splitlines(keepends=True)[:20]))
  predict.predict_file(model, file, out)
  assert capsys.readouterr().err.startswith(f"{out}: goes on after 16 of 40 rows\n24 of 40 rows\n")
