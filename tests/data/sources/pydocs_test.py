"""The corpus inside Python: what it reads and keeps, splits that do not overlap, labels that train fixes."""

import sys
import sysconfig

import pytest

from lm.config import ConfigError
from lm.data.sources import pydocs
from lm.data.sources.pydocs import Pydocs


def texts(split, **options):
  source = Pydocs(split, **options)
  return [source[i]["text"] for i in range(len(source))]


@pytest.fixture
def library(tmp_path, monkeypatch):
  """A standard library of two modules without topics, and an empty cache; read it with `documents()`."""
  monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
  monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  files = {
    "a.py": '"""Module a."""\nclass C:\n  """Class.\n\n    Indented.\n  """\n  async def f(self):\n    """Method."""\n',
    "b/__init__.py": '"""Module a."""\ndef f():\n  """Function of b."""\n',
    "b/test/x.py": '"""A test."""\n',
    "site-packages/y.py": '"""Installed."""\n',
    "broken.py": "def (",
  }
  for name, source in files.items():
    path = tmp_path / "lib" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
  return tmp_path


def documents():
  """Read anew, past the copy that this process keeps."""
  return pydocs._documents.__wrapped__()


def test_docstrings_are_clean_and_stand_once(library):
  cleaned = "Class.\n\nIndented."
  assert documents() == [("Module a.", "a"), (cleaned, "a"), ("Method.", "a"), ("Function of b.", "b")]


def test_the_library_is_parsed_once_and_again_when_it_changes(library, monkeypatch):
  first = documents()
  with monkeypatch.context() as without_parser:
    without_parser.setattr(pydocs, "_read", None)
    assert documents() == first
  (library / "lib" / "a.py").write_text('"""Another module a."""\n')
  assert ("Another module a.", "a") in documents()


def test_a_damaged_cache_is_read_past(library):
  first = documents()
  (cache,) = (library / "cache" / "lm").iterdir()
  cache.write_text(cache.read_text()[:-9])
  assert documents() == first
  assert list(cache.parent.iterdir()) == [cache]


def test_a_library_without_docstrings_is_an_error(library):
  for path in (library / "lib").rglob("*.py"):
    path.write_text("")
  with pytest.raises(ConfigError, match="no docstrings"):
    documents()


def test_splits_are_disjoint_and_held_out_text_is_new():
  train = set(texts("train"))
  shingles = {shingle for text in train for shingle in pydocs._shingles(text)}
  for split in ("validation", "test"):
    held_out = texts(split)
    assert len(held_out) > 100
    assert len(set(held_out)) == len(held_out)
    assert not train & set(held_out)
    assert all(pydocs._overlap(text, shingles) < pydocs.MAX_OVERLAP for text in held_out)


def test_overlap_counts_shingles_and_takes_a_short_text_whole():
  words = [f"w{i}" for i in range(10)]
  seen = set(pydocs._shingles(" ".join(words[:8])))
  assert pydocs._overlap(" ".join(words), seen) == pytest.approx(1 / 3)
  assert pydocs._overlap("w0 w1", seen) == 0
  assert pydocs._overlap("w0 w1", set(pydocs._shingles("w0  w1"))) == 1


def test_every_document_is_kept_or_counted_as_dropped():
  splits, dropped = pydocs._splits()
  assert sum(map(len, splits.values())) + dropped == len(pydocs._documents())
  assert f"{dropped} held-out" in Pydocs().describe()


def test_labels_are_modules_with_enough_training_documents():
  source = Pydocs("train", label="module")
  counts = [sum(source[i]["label"] == label for i in range(len(source))) for label in source.labels]
  assert min(counts) >= pydocs.MIN_LABELLED
  assert Pydocs("test", label="module").labels == source.labels == tuple(sorted(source.labels))
  assert {Pydocs("test", label="module")[i]["label"] for i in range(50)} <= set(source.labels)
  assert Pydocs().labels == ()


def test_fingerprint_follows_content():
  prints = {Pydocs(split).fingerprint() for split in ("train", "validation")} | {Pydocs(label="module").fingerprint()}
  assert len(prints) == 3
  assert Pydocs().fingerprint() == Pydocs().fingerprint()


@pytest.mark.parametrize("options", [{"split": "dev"}, {"label": "topic"}])
def test_an_unknown_option_is_named(options):
  (value,) = options.values()
  with pytest.raises(ConfigError, match=value):
    Pydocs(**options)
