"""Multiple choice in files: SWAG's, RACE's and COPA's columns give examples, and bad rows are named by their place."""

import json

import pytest

from lm.config import ConfigError
from lm.data.sources.choices import Choices

SWAG = "sent1,sent2,ending0,ending1,label\n" + "".join(f"He stands {i}.,He,sits {i},flies,{i % 2}\n" for i in range(40))
COLUMNS = {"context": "sent1", "question": "sent2", "columns": ("ending0", "ending1")}
RACE = {"article": "A b c.", "question": "Who?", "options": ["x", "y", "z"], "answer": "C"}
RACE_COLUMNS = {"context": "article", "question": "question", "columns": "options", "label": "answer", "first": "A"}


def write(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_a_column_for_each_choice(tmp_path):
  (tmp_path / "swag.csv").write_text(SWAG)
  splits = {split: Choices(split, path=str(tmp_path / "swag.csv"), **COLUMNS) for split in ("train", "validation", "test")}
  assert splits["train"].choices == ("0", "1")
  lines = SWAG.splitlines()
  found = [(source.locate(i)["line"], source[i]) for source in splits.values() for i in range(len(source))]
  assert len(found) == 40
  for line, example in found:
    context, question, *choices, label = lines[line - 1].split(",")
    assert example == {"context": context, "question": question, "choices": choices, "label": label}
  contexts = [{source[i]["context"] for i in range(len(source))} for source in splits.values()]
  assert sum(map(len, contexts)) == len(set.union(*contexts))
  assert "right in train: 0 " in splits["train"].describe()


def test_a_list_of_choices_and_letters(tmp_path):
  path = write(tmp_path / "race.jsonl", RACE, RACE | {"answer": " A "})
  source = Choices(path=path, validation=path, test=path, **RACE_COLUMNS)
  assert source.choices == ("A", "B", "C")
  assert source[0] == {"context": "A b c.", "question": "Who?", "choices": ["x", "y", "z"], "label": "C"}
  assert source[1]["label"] == "A"
  counted = Choices(path=write(tmp_path / "one.jsonl", RACE | {"answer": 3}), **RACE_COLUMNS | {"first": "1"})
  assert (counted.choices, counted[0]["label"]) == (("1", "2", "3"), "3")


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ({"options": ["x", "y"]}, "2 choices, where the first row has 3"),
    ({"options": ["x", "", "z"]}, r"'options\[1\]' is empty"),
    ({"options": "x|y|z"}, "'options' holds no list; data.columns=a,b,c names a column for each choice"),
    ({"answer": "D"}, "label 'D' is none of A, B, C, as data.first='A' counts them"),
    ({"answer": 1}, "label '1' is none of A, B, C"),
    ({"question": " "}, "'question' is empty"),
  ],
)
def test_a_bad_row_is_one_line_or_counted(row, words, tmp_path):
  path = write(tmp_path / "race.jsonl", RACE, RACE | row)
  with pytest.raises(ConfigError, match=rf"race.jsonl line 2: {words}[^\n]*; data.on_bad_row=skip leaves such rows out$"):
    len(Choices(path=path, **RACE_COLUMNS))
  kept = Choices(path=path, validation=path, test=path, on_bad_row="skip", **RACE_COLUMNS)
  assert len(kept) == 1
  assert "bad rows left out: 3 of" in kept.describe()


def test_a_single_choice_in_the_first_row_is_one_line(tmp_path):
  with pytest.raises(ConfigError, match="line 1: 1 choices, where 2 or more are needed"):
    len(Choices(path=write(tmp_path / "a.jsonl", RACE | {"options": ["x"]}), **RACE_COLUMNS))


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"path": ""}, "data.path='': not set"),
    ({"context": "", "question": ""}, "data.context='': not set, and data.question is not either"),
    ({"first": "2"}, "data.first='2': accepted are 0, 1, A"),
    ({"on_bad_row": "drop"}, "data.on_bad_row='drop': accepted are error, skip"),
    ({"columns": ("answer", "options")}, r"data.columns=\('answer', 'options'\): accepted are columns other than"),
  ],
)
def test_bad_settings_are_one_line(options, words, tmp_path):
  with pytest.raises(ConfigError, match=f"^{words}"):
    Choices(**{"path": write(tmp_path / "race.jsonl", RACE), **RACE_COLUMNS, **options})
