"""The corpus inside Python: splits do not overlap, labels are fixed by train; text files."""

import pytest

from lm.config import ConfigError
from lm.data.sources import pydocs
from lm.data.sources.pydocs import Pydocs
from lm.data.sources.text import Text


def texts(split, **options):
  source = Pydocs(split, **options)
  return [source[i]["text"] for i in range(len(source))]


def test_splits_are_disjoint_and_held_out_text_is_new():
  train = set(texts("train"))
  shingles = {s for text in train for s in pydocs._shingles(text)}
  for split in ("validation", "test"):
    held_out = texts(split)
    assert len(held_out) > 100
    assert not train & set(held_out)
    assert all(pydocs._overlap(text, shingles) < pydocs.MAX_OVERLAP for text in held_out)


def test_labels_are_modules_with_enough_training_documents():
  source = Pydocs("train", label="module")
  counts = [sum(source[i]["label"] == label for i in range(len(source))) for label in source.labels]
  assert min(counts) >= pydocs.MIN_LABELLED
  assert Pydocs("test", label="module").labels == source.labels


def test_fingerprint_follows_content():
  prints = {Pydocs(split).fingerprint() for split in ("train", "validation")} | {Pydocs(label="module").fingerprint()}
  assert len(prints) == 3
  assert Pydocs().fingerprint() == Pydocs().fingerprint()


@pytest.mark.parametrize(
  ("unit", "expected"), [("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c\n"]), ("file", ["a\nb\n\nc\n"])]
)
def test_text_units(unit, expected, tmp_path):
  (tmp_path / "x.txt").write_text("a\nb\n\nc\n")
  source = Text(path=str(tmp_path / "*.txt"), unit=unit)
  assert [source[i]["text"] for i in range(len(source))] == expected


def test_text_errors_name_the_file(tmp_path):
  (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
  with pytest.raises(ConfigError, match="not UTF-8"):
    len(Text(path=str(tmp_path / "bad.txt")))
  with pytest.raises(ConfigError, match="validation"):
    Text("validation", path=str(tmp_path / "bad.txt"))
