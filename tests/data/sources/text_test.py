"""Text files: units, globs, files of each split, and errors that name the setting."""

import bz2
import gzip
import hashlib
import json
import lzma
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow
import pytest
from pyarrow import parquet

from lm.config import ConfigError
from lm.data import paths
from lm.data.sources.pydocs import Pydocs
from lm.data.sources.table import Table
from lm.data.sources.text import Text


def texts(source):
  return [source[i]["text"] for i in range(len(source))]


@pytest.mark.parametrize(
  ("unit", "expected"),
  [
    ("line", ["a", "b", "  c\x0c\u2028d"]),
    ("paragraph", ["a\nb", "  c\x0c\u2028d"]),
    ("file", ["a\nb\n\n  c\x0c\u2028d\n"]),
  ],
)
def test_units(unit, expected, tmp_path):
  (tmp_path / "x.txt").write_text("a\nb\n\n  c\x0c\u2028d\n", encoding="utf-8")
  assert texts(Text(path=str(tmp_path / "x.txt"), unit=unit)) == expected


def test_newlines_of_any_system_end_a_line(tmp_path):
  (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n \r\nc\rd\r\r\re")
  assert texts(Text(path=str(tmp_path / "x.txt"))) == ["a", "b", "c", "d", "e"]
  assert texts(Text(path=str(tmp_path / "x.txt"), unit="paragraph")) == ["a\nb", "c\nd", "e"]
  assert texts(Text(path=str(tmp_path / "x.txt"), unit="file")) == ["a\nb\n \nc\nd\n\n\ne"]


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


def write_zst(path, data):
  with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
    file.write(data)


CODECS = {
  "gz": lambda path, data: path.write_bytes(gzip.compress(data[:7]) + gzip.compress(data[7:])),
  "bz2": lambda path, data: path.write_bytes(bz2.compress(data)),
  "xz": lambda path, data: path.write_bytes(lzma.compress(data)),
  "zst": write_zst,
}


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_files_are_read_in_any_order(codec, tmp_path):
  lines = [f"line {i} é" for i in range(500)]
  CODECS[codec](tmp_path / f"x.txt.{codec}", "\n".join(lines).encode())
  CODECS[codec](tmp_path / f"x.jsonl.{codec}", "\n".join(json.dumps({"text": line}) for line in lines).encode())
  for name in ("txt", "jsonl"):
    source = Text(path=str(tmp_path / f"x.{name}.{codec}"))
    assert texts(source) == lines
    assert [source[i]["text"] for i in (499, 3, 4, 2)] == [lines[i] for i in (499, 3, 4, 2)]
  (tmp_path / "rows.csv").write_text("text\n" + "\n".join(lines))
  CODECS[codec](tmp_path / f"rows.csv.{codec}", (tmp_path / "rows.csv").read_bytes())
  assert texts(Text(path=str(tmp_path / f"rows.csv.{codec}"))) == lines


def test_tables_are_corpora_too(tmp_path):
  rows = [{"body": f'text "{i}"\nwith, lines\u2028', "n": i} for i in range(10)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
  quoted = lambda text: '"' + text.replace('"', '""') + '"'
  for name, delimiter in (("b.csv", ","), ("c.tsv", "\t")):
    lines = [f"n{delimiter}body", *(f"{row['n']}{delimiter}{quoted(row['body'])}" for row in rows)]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8-sig")
  parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=3)
  expected = [row["body"] for row in rows]
  for name in ("a.jsonl", "b.csv", "c.tsv", "d.parquet"):
    source = Text(path=str(tmp_path / name), text="body")
    assert texts(source) == expected
    assert [source[i]["text"] for i in (9, 0, 4)] == [expected[i] for i in (9, 0, 4)]
  assert texts(Text(path=str(tmp_path), text="body")) == expected * 4
  assert texts(Text(path=(str(tmp_path / "d.parquet"), str(tmp_path / "a*")), text="body")) == expected * 2


def test_a_folder_is_all_its_files_but_hidden_ones(tmp_path):
  (tmp_path / "b").mkdir()
  for name in ("b/c.txt", "a.txt", ".hidden", "b/.d.txt"):
    (tmp_path / name).write_text(name)
  assert texts(Text(path=str(tmp_path))) == ["a.txt", "b/c.txt"]


def test_one_file_is_open_at_a_time(tmp_path):
  for i in range(60):
    (tmp_path / f"{i:02}.txt").write_text(f"a{i}\nb{i}")
  source = Text(path=str(tmp_path))
  before = len(list(Path("/dev/fd").iterdir()))
  assert texts(source) == [f"{letter}{i}" for i in range(60) for letter in "ab"]
  assert [source[i]["text"] for i in (119, 0, 1, 60)] == ["b59", "a0", "b0", "a30"]
  assert len(list(Path("/dev/fd").iterdir())) <= before + 1


def test_remote_files_are_read_through_fsspec():
  files = fsspec.filesystem("memory")
  files.pipe({"/corpus/b.txt": b"c\n", "/corpus/a.txt.gz": gzip.compress(b"a\nb\n"), "/corpus/.x": b"no"})
  for pattern in ("memory://corpus", "memory://corpus/*.t*", ("memory://corpus/a.txt.gz", "memory://corpus/b.txt")):
    assert texts(Text(path=pattern)) == ["a", "b", "c"]
  before = Text(path="memory://corpus").fingerprint()
  files.pipe({"/corpus/b.txt": b"changed\n"})
  assert Text(path="memory://corpus").fingerprint() != before


def test_encodings_with_ascii_in_them(tmp_path):
  (tmp_path / "x.txt").write_bytes("\u4f60\n\u597d".encode("gb18030"))
  assert texts(Text(path=str(tmp_path / "x.txt"), encoding="gb18030")) == ["\u4f60", "\u597d"]


def test_bad_rows_are_errors_or_counted(tmp_path, capsys):
  (tmp_path / "x.txt").write_bytes(b"a\n\xff\nb\n\xfe\n")
  (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": 1\n{"text": "b"}\n{"other": 3}\n[]\n')
  parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "x.parquet", row_group_size=1)
  (tmp_path / "x.csv").write_text("text,n\na,1\n,2\nb,2\nc\n")
  for name, place, reasons in (
    ("x.txt", "line 2", ["byte 0 is not utf-8 text"]),
    ("x.jsonl", "line 2", ["bad JSON", "'text' is empty", "not a JSON object"]),
    ("x.parquet", "row 2", ["'text' is empty"]),
    ("x.csv", "line 3", ["'text' is empty", "1 cells where the first row has 2"]),
  ):
    path = str(tmp_path / name)
    assert texts(Text(path=path, on_bad_row="skip")) == ["a", "b"]
    said = capsys.readouterr().out
    assert all(reason in said for reason in reasons), said
    with pytest.raises(ConfigError, match=f"data.path: .*{name} {place}: {reasons[0]}.*; data.on_bad_row=skip"):
      len(Text(path=path))


def test_a_corpus_is_not_held_in_memory(tmp_path):
  with open(tmp_path / "x.txt", "w") as file:
    file.writelines(f"{i} {'word ' * 200}\n" for i in range(20_000))
  source = Text(path=str(tmp_path / "x.txt"))
  tracemalloc.start()
  assert sum(len(source[i]["text"]) for i in range(len(source))) > 20_000_000
  held, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert held < 1_000_000, "16 bytes for each document"
  assert peak < 2_000_000


def test_the_hash_of_a_large_file_is_kept_under_its_size_and_time(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(paths, "REMEMBERED", 4)
  (tmp_path / "x.txt").write_text("abcd")
  before = Text(path=str(tmp_path / "x.txt")).fingerprint()
  (note,) = (tmp_path / "cache").rglob("sha256/*")
  assert note.read_text() == hashlib.sha256(b"abcd").hexdigest()
  paths._local_hash.cache_clear()
  with monkeypatch.context() as unread:
    unread.setattr(paths, "_raw", None)
    assert Text(path=str(tmp_path / "x.txt")).fingerprint() == before
  (tmp_path / "x.txt").write_text("abcde")
  assert Text(path=str(tmp_path / "x.txt")).fingerprint() != before


def test_errors_name_setting_and_value(tmp_path):
  (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
  for name in ("bad.txt.bz2", "bad.parquet"):
    (tmp_path / name).write_bytes(b"\xff\xfe\xfa")
  (tmp_path / "short.txt.gz").write_bytes(gzip.compress(b"abc")[:-3])
  (tmp_path / "empty").mkdir()
  bad = str(tmp_path / "bad.txt")
  cases = [
    ({"path": bad}, r"data\.path: .*bad\.txt line 1: byte 0 is not utf-8 text; data\.on_bad_row=skip leaves such rows out"),
    ({"path": "missing.txt"}, r"data\.path='missing\.txt': no such file"),
    ({"path": str(tmp_path / "empty")}, r"data\.path=.*empty': no such file; accepted are a file, a folder"),
    ({"path": ("", bad)}, r"data\.path='': no such file"),
    ({"path": "gs://bucket/a.txt"}, r"data\.path='gs://bucket/a\.txt': Please install gcsfs"),
    ({"path": "nothing://a"}, r"data\.path='nothing://a': Protocol not known: nothing"),
    ({"path": bad, "encoding": "utf-16"}, r"data\.encoding='utf-16': accepted"),
    ({"path": bad, "encoding": "utf-9"}, r"data\.encoding='utf-9': accepted"),
    ({"path": bad, "on_bad_row": "drop"}, r"data\.on_bad_row='drop': accepted are error, skip"),
    ({"path": str(tmp_path / "short.txt.gz")}, r"data\.path: .*short\.txt\.gz' cannot be read: Compressed file ended"),
    ({"path": str(tmp_path / "bad.txt.bz2")}, r"data\.path: .*bad\.txt\.bz2' cannot be read: Invalid data stream"),
    ({"path": str(tmp_path / "bad.parquet")}, r"data\.path=.*bad\.parquet': not a whole parquet file"),
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
