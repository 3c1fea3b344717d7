"""The tool that makes a corpus clean: what it writes, all or nothing, and its command line."""

import gzip
import json
import random
import subprocess
import sys

import pytest

from lm import prepare
from lm.config import ConfigError, parse_plug
from lm.data.sources.text import Text
from lm.prepare import Prepare

LINES = ["One two three four five six", "one  TWO three four five six", "Mail me: ann@x.org now", "", "short", "你好，世界"]


def settings(folder, *filters, **options):
  path = folder / "corpus.txt"
  path.write_text("\n".join(LINES) + "\n", encoding="utf-8")
  plugs = tuple(parse_plug("filter", each) for each in filters)
  return Prepare(parse_plug("data", options.pop("data", f"text(path={path})")), plugs, folder / "out", **options)


def texts(output):
  source = Text(path=str(output / "part-*"))
  return [source[i]["text"] for i in range(len(source))]


FILTERS = ("length(min_words=2)", "exact", "redact")


def test_documents_pass_the_filters_in_order_and_are_counted(tmp_path):
  report = prepare.prepare(settings(tmp_path, *FILTERS))
  assert texts(tmp_path / "out") == [LINES[0], "Mail me: <email> now", LINES[5]]
  assert report == json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["before"] == {"documents": 5, "characters": sum(map(len, LINES))}
  assert [each["documents"] for each in report["filters"]] == [4, 3, 3]
  assert report["after"] == {"documents": 3, "characters": len(LINES[0]) + len("Mail me: <email> now") + 5}
  assert report["filters"][2]["replaced"]["email"] == 1
  assert report["files"] == {"part-00000.jsonl": 3}
  assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "out"]
  rows = prepare.table(report).rows
  assert [row[:3] for row in rows[:2]] == [["before", "5", ""], ["length(min_words=2)", "4", "-1"]]


@pytest.mark.parametrize("compress", ["gz", "zst"])
def test_compressed_files_hold_the_same_and_are_the_same_bytes_again(tmp_path, compress):
  prepare.prepare(settings(tmp_path, *FILTERS, compress=compress))
  assert texts(tmp_path / "out") == [LINES[0], "Mail me: <email> now", LINES[5]]
  name = f"part-00000.jsonl.{compress}"
  first = (tmp_path / "out" / name).read_bytes()
  (tmp_path / "out").rename(tmp_path / "before")
  prepare.prepare(settings(tmp_path, *FILTERS, compress=compress))
  assert (tmp_path / "out" / name).read_bytes() == first
  if compress == "gz":
    assert json.loads(gzip.decompress(first).splitlines()[0]) == {"text": LINES[0]}


def test_a_full_file_is_followed_by_the_next(tmp_path):
  data = {"name": "memory", "texts": [f"{i} {'x' * 400_000}" for i in range(7)]}
  report = prepare.prepare(settings(tmp_path, "exact", data=data, shard_mb=1))
  assert report["files"] == {"part-00000.jsonl": 3, "part-00001.jsonl": 3, "part-00002.jsonl": 1}
  assert [text[0] for text in texts(tmp_path / "out")] == list("0123456")


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"compress": "rar"}, "compress='rar': accepted are gz, zst"),
    ({"shard_mb": 0}, "shard_mb=0"),
    ({"data": "memory(texts=(a,b), text_labels=(x,y))"}, "gives text, label; accepted are sources that give text alone"),
    ({"data": "memory"}, "no examples"),
    ({"data": "memory(texts=(a,b))"}, "leave none of 2 documents"),
    ({"split": "validation"}, "data.validation"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, options, words):
  if "texts=" in options.get("data", ""):
    parts = {
      "a": {"name": "memory", "texts": ["a", "b"]},
      "x": {"name": "memory", "texts": ["a", "b"], "text_labels": ["x", "y"]},
    }
    options = {**options, "data": parts["x" if "labels" in options["data"] else "a"]}
  with pytest.raises(ConfigError) as error:
    prepare.prepare(settings(tmp_path, "length(min_words=2)", **options))
  assert words in str(error.value)
  assert "\n" not in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_an_output_that_exists_is_kept(tmp_path):
  (tmp_path / "out").mkdir()
  with pytest.raises(ConfigError, match="out': exists already; nothing is overwritten"):
    settings(tmp_path, "exact")
  with pytest.raises(ConfigError, match="filters: none is given; there are: decontaminate, exact"):
    Prepare(parse_plug("data", "pydocs"), (), tmp_path / "other")


def test_an_output_that_comes_up_meanwhile_is_kept(tmp_path):
  given = settings(tmp_path, "exact")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "theirs").touch()
  with pytest.raises(ConfigError, match="exists by now"):
    prepare.prepare(given)
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
  assert len(list(tmp_path.iterdir())) == 2


def test_bad_lines_are_an_error_or_left_out(tmp_path, capsys):
  bad = tmp_path / "bad.jsonl"
  bad.write_text('{"text": "one two"}\n{"text": \n{"text": 3, "other": 1}\n{"other": 1}\n')
  with pytest.raises(ConfigError, match="bad.jsonl line 2: bad JSON"):
    prepare.prepare(settings(tmp_path, "exact", data=f"text(path={bad})"))
  prepare.prepare(settings(tmp_path, "exact", data=f"text(path={bad}, on_bad_row=skip)"))
  assert texts(tmp_path / "out") == ["one two", "3"]
  assert "bad rows left out: 1 of" in capsys.readouterr().out


def test_planted_near_duplicates_of_real_text_are_found(tmp_path, data_dir):
  """5% of the articles' paragraphs come again, five words of a hundred replaced, dropped or swapped with the next."""
  source = Text(path=str(data_dir / "wikitext-2" / "valid.txt"))
  lines = [text for i in range(len(source)) if len((text := source[i]["text"]).split()) >= 30]
  rng = random.Random(0)
  planted = [planted_in(line, 0.05, rng) for line in rng.sample(lines, len(lines) // 20)]
  path = tmp_path / "planted.jsonl"
  path.write_text("".join(json.dumps({"text": line}) + "\n" for line in [*lines, *planted]))
  report = prepare.prepare(settings(tmp_path, "near", data=f"text(path={path})"))
  stayed = set(texts(tmp_path / "out"))
  assert len(planted) > 60
  assert sum(line not in stayed for line in planted) >= 0.95 * len(planted)
  assert sum(line not in stayed for line in lines) <= 0.002 * len(lines)
  assert report["before"]["documents"] == len(lines) + len(planted)


def planted_in(line: str, rate: float, rng: random.Random) -> str:
  words = line.split()
  for _ in range(max(1, round(rate * len(words)))):
    at = rng.randrange(len(words) - 1)
    words[at : at + 2] = rng.choice([["other", words[at + 1]], [words[at + 1]], [words[at + 1], words[at]]])
  return " ".join(words)


def test_the_command_line(tmp_path):
  settings(tmp_path, "exact")
  command = [
    sys.executable,
    "-m",
    "tools.prepare",
    "filter",
    f"--data=text(path={tmp_path}/corpus.txt)",
    f"--output={tmp_path}/out",
  ]
  done = subprocess.run([*command, "--filters", *FILTERS], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "length(min_words=2)" in done.stdout
  assert "documents/s" in done.stdout
  assert len(texts(tmp_path / "out")) == 3
  again = subprocess.run([*command, "--filters", *FILTERS], capture_output=True, text=True)
  assert again.returncode == 2
  assert again.stderr.count("\n") == 1
  assert again.stderr.startswith("error: output=")
