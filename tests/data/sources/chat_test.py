"""Conversations in files: whole rows in every kind of file, split by their prompts, and bad rows named by their place."""

import json

import pytest

from lm.config import ConfigError
from lm.data.sources.chat import Chat

ROWS = [{"prompt": f"question {i % 40}", "response": f"answer {i}"} for i in range(60)]
PAIRS = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(30)]


def write(path, rows, suffix=".jsonl"):
  lines = {".jsonl": "".join(json.dumps(row) + "\n" for row in rows), ".json": json.dumps(rows)}
  if suffix == ".parquet":
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path / f"a{suffix}")
  elif suffix == ".csv":
    (path / "a.csv").write_text("".join(",".join(line) + "\n" for line in [rows[0], *(row.values() for row in rows)]))
  else:
    (path / f"a{suffix}").write_text(lines[suffix])
  return str(path / f"a{suffix}")


def examples(**options):
  return [example for split in ("train", "validation", "test") for example in Chat(split, **options)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_every_kind_of_file_holds_the_same_examples(suffix, tmp_path):
  found = examples(path=write(tmp_path, ROWS, suffix))
  said = lambda row: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
  assert sorted(map(str, found)) == sorted(str({"messages": said(row)}) for row in ROWS)


def test_no_prompt_stands_in_two_splits_and_rows_that_are_added_move_no_other(tmp_path):
  path = write(tmp_path, ROWS)
  prompts = lambda split: {example["messages"][0]["content"] for example in Chat(split, path=path)}
  found = [prompts(split) for split in ("train", "validation", "test")]
  assert [len(prompts) for prompts in found] != [40, 0, 0]
  assert sum(map(len, found)) == len(set.union(*found)) == 40
  write(tmp_path, [*ROWS, *PAIRS])
  again = [
    {e["messages"][0]["content"] for e in Chat(split, path=path) if "messages" in e}
    for split in ("train", "validation", "test")
  ]
  assert again == found


def test_files_of_their_own_and_globs(tmp_path):
  for name in ("a", "b", "v", "t"):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "response": "x"}) + "\n")
  options = {
    "path": (str(tmp_path / "[ab].jsonl"),),
    "validation": str(tmp_path / "v.jsonl"),
    "test": str(tmp_path / "t.jsonl"),
  }
  names = lambda split: sorted(example["messages"][0]["content"] for example in Chat(split, **options))
  assert [names(split) for split in ("train", "validation", "test")] == [["a", "b"], ["v"], ["t"]]


def test_columns_of_other_names(tmp_path):
  path = write(tmp_path, [{"question": "a", "best": "b", "prompt": "no"}])
  (example,) = examples(path=path, columns=("prompt=question", "response=best"))
  assert [message["content"] for message in example["messages"]] == ["a", "b"]
  with pytest.raises(ConfigError, match="data.columns='worst': no such column .*'best'"):
    examples(path=path, columns=("prompt=question", "response=worst"))
  with pytest.raises(ConfigError, match="data.columns='prompt': expected OURS=COLUMN"):
    Chat(path=path, columns="prompt")


def test_preferences_keep_both_answers_and_the_place_is_known(tmp_path):
  source = Chat(path=write(tmp_path, PAIRS))
  assert source[0].keys() == {"prompt", "chosen", "rejected"}
  place = source.locate(0)
  assert PAIRS[place["line"] - 1]["prompt"] == source[0]["prompt"][0]["content"]
  assert "preferences and 0 conversations" in source.describe()
  assert "row" in Chat(path=write(tmp_path, PAIRS, ".json")).locate(0)


def test_fingerprint_follows_what_is_read(tmp_path):
  first = Chat(path=write(tmp_path, ROWS)).fingerprint()
  assert first == Chat(path=write(tmp_path, ROWS, ".json")).fingerprint()
  assert first != Chat("validation", path=str(tmp_path / "a.jsonl")).fingerprint()
  changed = [*ROWS[:-1], {**ROWS[-1], "response": "another"}]
  assert {Chat(split, path=write(tmp_path, changed)).fingerprint() for split in ("train", "validation", "test")} != {
    Chat(split, path=write(tmp_path, ROWS)).fingerprint() for split in ("train", "validation", "test")
  }


def test_a_bad_row_is_named_or_counted(tmp_path):
  path = write(tmp_path, [*ROWS, {"prompt": "a"}])
  with pytest.raises(ConfigError, match="a.jsonl line 61: the example has the columns prompt; accepted .*on_bad_row=skip"):
    len(Chat(path=path))
  source = Chat(path=path, on_bad_row="skip")
  assert "bad rows left out: 1 of" in source.describe()
  assert len(examples(path=path, on_bad_row="skip")) == 60
  with pytest.raises(ConfigError, match="no row is left; bad: .*columns prompt"):
    len(Chat(path=write(tmp_path, [{"prompt": "a"}]), on_bad_row="skip"))


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({}, "data.path='': not set"),
    ({"path": "nowhere.jsonl"}, "data.path='nowhere.jsonl': no such file"),
    ({"path": "a.txt"}, "data.path='a.txt': accepted are files that end in .jsonl"),
    ({"path": "a.txt", "on_bad_row": "drop"}, "accepted are error, skip"),
  ],
)
def test_bad_options(options, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "a.txt").write_text("x")
  with pytest.raises(ConfigError, match=words):
    Chat(**options)


def test_public_data_is_read(data_dir):
  found = list(Chat(path=str(data_dir / "alpaca/alpaca_en_demo.json")))
  assert all([message["role"] for message in example["messages"]] == ["user", "assistant"] for example in found)
  pairs = Chat(path=str(data_dir / "preference/dpo_en_demo.json"))
  assert all(example["rejected"][-1]["role"] == "assistant" for example in pairs)
  assert len(pairs) > 200
