"""Text files: units, globs, files of each split, and errors that name the setting."""

import hashlib

import pytest

from lm.config import ConfigError
from lm.data.sources.pydocs import Pydocs
from lm.data.sources.table import Table
from lm.data.sources.text import Text


def texts(source):
  return [source[i]["text"] for i in range(len(source))]


@pytest.mark.parametrize(
  ("unit", "expected"),
  [
    ("line", ["a", "b", "  c\x0c\u2028d"]),
    ("paragraph", ["a\nb", "  c\x0c\u2028d\n"]),
    ("file", ["a\nb\n\n  c\x0c\u2028d\n"]),
  ],
)
def test_units(unit, expected, tmp_path):
  (tmp_path / "x.txt").write_text("a\nb\n\n  c\x0c\u2028d\n", encoding="utf-8")
  assert texts(Text(path=str(tmp_path / "x.txt"), unit=unit)) == expected


def test_newlines_of_any_system_end_a_line(tmp_path):
  (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
  assert texts(Text(path=str(tmp_path / "x.txt"))) == ["a", "b"]


def test_a_glob_reads_files_in_order_and_no_folders(tmp_path):
  (tmp_path / "folder.txt").mkdir()
  for name in ("b", "a", "folder.txt/c"):
    (tmp_path / f"{name}.txt").write_text(name[-1])
  assert texts(Text(path=str(tmp_path / "*.txt"))) == ["a", "b"]
  assert texts(Text(path=str(tmp_path / "**" / "*.txt"))) == ["a", "b", "c"]


def test_a_name_with_a_bracket_is_a_file(tmp_path):
  (tmp_path / "a[1].txt").write_text("a")
  assert texts(Text(path=str(tmp_path / "a[1].txt"))) == ["a"]


def test_each_split_reads_its_own_file(tmp_path):
  files = {name: str(tmp_path / f"{name}.txt") for name in ("path", "validation", "test")}
  for name, file in files.items():
    (tmp_path / f"{name}.txt").write_text(f"of {name}")
    assert texts(Text("train" if name == "path" else name, **{**dict.fromkeys(files, ""), name: file})) == [f"of {name}"]


def test_an_empty_file_has_no_documents(tmp_path):
  (tmp_path / "x.txt").write_text("\n \n")
  assert len(Text(path=str(tmp_path / "x.txt"))) == 0


def test_fingerprint_follows_documents(tmp_path):
  prints = set()
  for content in ("a\nb", "ab", "a\x00b", "b\na"):
    (tmp_path / "x.txt").write_text(content)
    prints.add(Text(path=str(tmp_path / "x.txt")).fingerprint())
  assert len(prints) == 4


def test_errors_name_setting_and_value(tmp_path):
  (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
  bad = str(tmp_path / "bad.txt")
  cases = [
    ({"path": bad}, r"data\.path.*bad\.txt.*not UTF-8"),
    ({"path": "missing.txt"}, r"data\.path='missing\.txt': no such file"),
    ({"path": str(tmp_path)}, r"data\.path=.*no such file"),
    ({}, r"data\.path='': not set"),
    ({"path": bad, "split": "validation"}, r"data\.validation='': not set"),
    ({"path": bad, "split": "dev"}, r"data\.split='dev'"),
    ({"path": bad, "unit": "word"}, r"data\.unit='word'"),
  ]
  for options, message in cases:
    with pytest.raises(ConfigError, match=message):
      len(Text(**options))


@pytest.mark.parametrize("kind", [Pydocs, Table, Text])
def test_a_source_is_hashed_once(kind, tmp_path, monkeypatch):
  (tmp_path / "x.txt").write_text("a\nb\n")
  source = kind() if kind is Pydocs else kind(path=str(tmp_path / "x.txt"))
  before = source.fingerprint()
  with monkeypatch.context() as without_hashes:
    without_hashes.setattr(hashlib, "sha256", None)
    assert source.fingerprint() == before
