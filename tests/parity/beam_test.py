"""A store that Beam builds is byte for byte the local one, under the same name, so that a run opens it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lm import build, config
from lm.data import beam, parts, store
from lm.data import tokenizer as tokenizers
from lm.tasks.causal import Causal
from tests.data.beam_test import make_work, write_corpus

pytest.importorskip("apache_beam")
pytestmark = pytest.mark.parity
RUNNER = ("--runner=DirectRunner",)
ROOT = Path(__file__).parents[2]


def files(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("num_parts", [1, 3, 60])
def test_it_is_the_local_store_byte_for_byte(num_parts, tmp_path):
  work, source = make_work(write_corpus(tmp_path), tmp_path / "beam", num_parts)
  built = beam.build(work, source, RUNNER).path
  alone = store.build(source, tokenizers.load("bytes"), Causal(), tmp_path / "alone", workers=1).path
  assert built.name == alone.name
  assert files(built) == files(alone)
  assert [path.name for path in built.parent.iterdir()] == [alone.name]


def test_parts_of_a_killed_pipeline_are_used_and_a_store_is_not_built_twice(tmp_path, monkeypatch):
  work, source = make_work(write_corpus(tmp_path), tmp_path, 4)
  beam.write_part(2, work)
  written, write = [], parts.write

  def note(chunks, part):
    written.append((part.local.name, part.exists()))
    write(chunks, part)

  monkeypatch.setattr(parts, "write", note)
  beam.build(work, source, RUNNER)
  assert sorted(written) == [(f"{i:05}-of-00004", i == 2) for i in range(4)]
  monkeypatch.setattr(beam, "_run", lambda *_: pytest.fail("it is there"))
  assert beam.build(work, source, RUNNER).num_sequences == len(source)


def test_the_command_builds_what_a_run_opens(tmp_path, capsys):
  path = tmp_path / "small.py"
  settings = {
    "task": "causal",
    "data": {"name": "text", "path": str(write_corpus(tmp_path))},
    "model": "gpt2-tiny",
    "tokenizer": "bytes",
    "seq_len": 64,
  }
  path.write_text(f"def get_config(argument=''):\n  return {settings!r}\n")
  command = [sys.executable, "-m", "tools.prepare", "store", f"--config={path}", "--parts=3", *RUNNER]
  done = subprocess.run([*command, f"--config.cache_dir={tmp_path}/cache"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  (folder,) = (tmp_path / "cache" / "store").iterdir()
  assert str(folder) in done.stdout
  run = build.make_run(config.load(str(path), [("cache_dir", f"{tmp_path}/cache")]))
  assert run.loader.batch(0)
  assert "tokenised" not in capsys.readouterr().out
