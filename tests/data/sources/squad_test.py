"""Questions in SQuAD's JSON: what they become, splits by article, every bad one said with its file and id."""

import json
import re

import pytest

from lm.config import ConfigError
from lm.data.sources.squad import Squad

CONTEXT = "Rome is in Italy. Rome is old."
QUESTION = {"id": "q1", "question": "Where is Rome?", "answers": [{"text": "Italy", "answer_start": 11}]}
NONE = {"id": "q2", "question": "Who?", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "Rome"}]}


def write(path, *questions, context=CONTEXT, articles=1):
  """A file in which every article has the questions, with ids of its own."""
  qas = lambda i: [{**row, "id": f"{row['id']}-{i}"} if i and row.get("id") else row for row in questions]
  data = [{"title": f"t{i}", "paragraphs": [{"context": context, "qas": qas(i)}]} for i in range(articles)]
  path.write_text(json.dumps({"version": "1.1", "data": data}))
  return str(path)


def make(tmp_path, *questions, context=CONTEXT, **options):
  file = write(tmp_path / "a.json", *questions, context=context)
  return Squad(path=(file,), validation=(file,), test=(file,), **options)


def test_questions_of_both_versions_and_of_a_test_set(tmp_path):
  unsure = {
    "id": "q3",
    "question": "What?",
    "answers": [{"text": "Rome", "answer_start": 0, "answer_start_is_first_match": True}],
  }
  source = make(tmp_path, QUESTION, NONE, unsure, {"id": "q4", "question": "Why?"})
  known = {"text": "Where is Rome?", "text_pair": CONTEXT, "id": "q1", "answers": [{"text": "Italy", "start": 11}]}
  assert source[0] == known
  assert source[1]["answers"] == []
  assert source[2]["answers"] == [{"text": "Rome", "start": 0, "unsure": True}]
  assert "answers" not in source[3] and len(source) == 4
  assert source.answers == ("span", "none") and source.pairs
  assert make(tmp_path, QUESTION).answers == ("span",)
  assert source.locate(1) == {"file": str(tmp_path / "a.json"), "id": "q2"}
  said = source.describe()
  assert "questions of train 4 on 1, validation 4 on 1, test 4 on 1 articles" in said
  assert "in train 1 have no answer, the others 2 answers\n  1 of them may stand elsewhere" in said


def test_splits_that_are_not_given_are_cut_by_article(tmp_path):
  file = write(tmp_path / "a.json", QUESTION, NONE, articles=60)
  splits = {split: Squad(split=split, path=(file,)) for split in ("train", "validation", "test")}
  articles = {split: {source[i]["id"].partition("-")[2] for i in range(len(source))} for split, source in splits.items()}
  assert sum(map(len, splits.values())) == 120 and sum(map(len, articles.values())) == 60
  assert len(articles["train"]) > 40 and articles["validation"] and articles["test"]
  assert all(len(splits[split]) == 2 * len(found) for split, found in articles.items())
  assert "validation and test cut from" in splits["train"].describe()
  assert len({source.fingerprint() for source in splits.values()}) == 3


BAD = [
  ({"answers": [{"text": "Italy", "answer_start": 12}]}, "answer 'Italy' is not what stands at 12 ('taly.')"),
  ({"answers": [{"text": "Italy", "answer_start": -5}]}, "answer 'Italy' is not what stands at -5 ('Rome ')"),
  ({"answers": [{"text": "Italy"}]}, 'an answer is {"text": "Italy"}, expected {"text": ..., "answer_start": number}'),
  ({"answers": ["Italy"]}, 'an answer is {"text": "Italy"}, expected'),
  ({"answers": []}, "has neither an answer nor is_impossible"),
  ({"is_impossible": True}, "has answers and is_impossible"),
  ({"question": " "}, "question is empty or no text"),
  ({"id": "q1"}, "another question has its id"),
]


@pytest.mark.parametrize(("change", "reason"), BAD)
def test_a_bad_question_is_an_error_with_file_and_id_or_counted(change, reason, tmp_path):
  rows = QUESTION, {**QUESTION, "id": "bad", **change}
  with pytest.raises(ConfigError, match=re.escape(f"data.path: {tmp_path / 'a.json'} question {rows[1]['id']}: {reason}")):
    len(make(tmp_path, *rows))
  source = make(tmp_path, *rows, on_bad_row="skip")
  assert len(source) == 1 and f"bad questions left out: 3 of {tmp_path / 'a.json'} ({reason}" in source.describe()


def test_a_question_without_id_or_context_is_bad(tmp_path):
  with pytest.raises(ConfigError, match=r"a.json question without an id: id is empty or no text; data.on_bad_row=skip"):
    len(make(tmp_path, {**QUESTION, "id": None}))
  with pytest.raises(ConfigError, match="question q1: context is empty or no text"):
    len(make(tmp_path, QUESTION, context=""))


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("[", "bad JSON"),
    ("[]", "'data' is no list of objects; accepted is JSON as SQuAD has it"),
    ('{"data": [{"paragraphs": [1]}]}', "'paragraphs' is no list of objects"),
    ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "'qas' is no list of objects"),
    ('{"data": []}', "data.path: no question in"),
  ],
)
def test_a_file_of_another_layout_is_refused(text, reason, tmp_path):
  (tmp_path / "a.json").write_text(text)
  with pytest.raises(ConfigError, match=re.escape(reason)):
    len(Squad(path=(str(tmp_path / "a.json"),)))
  with pytest.raises(ConfigError, match="data.path='': not set"):
    Squad()


def test_the_public_file_has_every_answer_at_its_place(data_dir):
  source = Squad(path=(str(data_dir / "squad/dev-v1.1.part-a.json"),))
  splits = [Squad(split=split, path=source.path) for split in ("train", "validation", "test")]
  assert sum(map(len, splits)) == 6936
  for split in splits:
    for example in map(split.__getitem__, range(len(split))):
      assert all(example["text_pair"][a["start"] :].startswith(a["text"]) for a in example["answers"])
  assert source.answers == ("span",)
