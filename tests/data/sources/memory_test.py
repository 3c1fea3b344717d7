"""Examples given in the config: the same in every split."""

import json

import pytest

from lm.config import ConfigError
from lm.data.sources.memory import Memory


def test_every_split_holds_the_same_examples():
  for split in ("train", "validation", "test"):
    source = Memory(split, texts=("a", "b"), text_labels=("y", "x"))
    assert [source[i] for i in range(len(source))] == [{"text": "a", "label": "y"}, {"text": "b", "label": "x"}]
    assert source.labels == ("x", "y")


def test_examples_without_labels_hold_text_only():
  assert Memory(texts=("a",))[0] == {"text": "a"}
  assert Memory(texts=("a",)).labels == ()


def test_fingerprint_follows_texts_and_labels():
  sources = [Memory(texts=("ab",)), Memory(texts=("a", "b")), Memory(texts=("ab",), text_labels=("x",))]
  assert len({source.fingerprint() for source in sources}) == 3


def test_a_label_for_every_text_or_none():
  with pytest.raises(ConfigError, match="1 labels for 2 texts"):
    Memory(texts=("a", "b"), text_labels=("x",))


def test_rows_of_any_columns_stand_instead_of_texts():
  rows = ('{"prompt": "Hi", "response": "Yo"}', '{"messages": [{"role": "user", "content": "Hi"}]}')
  source = Memory(rows=rows)
  assert [source[i] for i in range(len(source))] == [json.loads(row) for row in rows]
  assert source.labels == ()
  assert source.fingerprint() != Memory(rows=rows[:1]).fingerprint()
  with pytest.raises(ConfigError, match="data.rows: no effect beside data.texts"):
    Memory(texts=("a",), rows=rows)
  with pytest.raises(ConfigError, match=r"data.rows\[1\]='x': bad JSON"):
    Memory(rows=(rows[0], "x"))
