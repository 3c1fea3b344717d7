"""A store is built once per identity, holds what `prepare` gave, and is rebuilt when its files are not whole."""

import dataclasses
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lm.config import ConfigError
from lm.data import columns, encode, store
from lm.data.tokenizer import Tokenizer
from lm.shapes import Field


@dataclasses.dataclass(frozen=True)
class Texts:
  texts: tuple[str, ...]
  split: str = "train"

  def __len__(self):
    return len(self.texts)

  def __getitem__(self, index):
    return {"text": self.texts[index]}

  def fingerprint(self):
    return repr(self.texts)


class Letters(Tokenizer):
  """Tokens are code points."""

  def fingerprint(self):
    return "letters"


@dataclasses.dataclass(frozen=True)
class Spell:
  """Stores the letters, and the number of letters as one value per sequence. `offset` reads into `prepare`, `rate` not."""

  offset: int = 0
  rate: float = 0.5
  prepare_fields = ("offset",)
  fields = {"tokens": Field(("T",)), "size": Field(())}

  def prepare(self, example, tok):
    letters = np.array([ord(letter) + self.offset for letter in example["text"]], np.int32)
    return [{"tokens": letters, "size": np.int32(len(letters))}]


SOURCE = Texts(("ab", "", "cde"))


def build(cache_dir, source=SOURCE, task=Spell(), workers=None):  # noqa: B008 - frozen
  return store.build(source, Letters(), task, cache_dir, workers)


def test_columns_are_ragged_and_as_small_as_their_values(tmp_path):
  built = build(tmp_path)
  assert built.columns == ("size", "tokens")
  assert built.num_sequences == 3
  assert built.lengths.tolist() == [2, 0, 3]
  assert bytes(built.values("tokens").tolist()) == b"abcde"
  assert built.values("size").tolist() == [2, 0, 3]
  assert built.values("tokens").dtype == np.uint16
  assert build(tmp_path, task=Spell(offset=1 << 16)).values("tokens").dtype == np.int32


def test_identity_is_what_prepare_reads(tmp_path):
  first = build(tmp_path)
  assert build(tmp_path, task=Spell(rate=0.1)) == first
  assert build(tmp_path, task=Spell(offset=1)) != first
  assert build(tmp_path, source=Texts(("ab",))) != first


def test_a_whole_store_is_not_built_again(tmp_path, monkeypatch):
  first = build(tmp_path)
  monkeypatch.delattr(Spell, "prepare")
  assert build(tmp_path) == first


@pytest.mark.parametrize("name", ["tokens.values.npy", "size.offsets.npy", "index.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\xff" + data[1:], lambda data: b"[]", None])
def test_any_damage_is_found_and_repaired(name, damage, tmp_path, capsys):
  path = build(tmp_path).path / name
  whole = path.read_bytes()
  if damage:
    path.write_bytes(damage(whole))
  else:
    path.unlink()
  assert build(tmp_path).path == path.parent
  assert "building it again" in capsys.readouterr().out
  assert path.read_bytes() == whole
  assert sorted(p.name for p in path.parent.parent.iterdir()) == [path.parent.name]


@pytest.mark.parametrize("at", [0, 9, 10, 25, -1])
def test_a_flipped_bit_in_any_segment_is_found(at, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(columns, "SEGMENT", 10)
  path = build(tmp_path).path / "tokens.values.npy"
  whole = bytearray(path.read_bytes())
  path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at:][1:])
  build(tmp_path)
  assert "damaged (tokens.values.npy); building it again" in capsys.readouterr().out
  assert path.read_bytes() == whole


def test_an_index_that_names_other_columns_is_damage(tmp_path, capsys):
  path = build(tmp_path).path / "index.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"columns": {"tokens": "<i4"}}))
  assert build(tmp_path).columns == ("size", "tokens")
  assert "damaged (index.json)" in capsys.readouterr().out


@dataclasses.dataclass(frozen=True)
class Deadly(Spell):
  """Ends its process without a word at one of the examples."""

  def prepare(self, example, tok):
    if example["text"] == "die":
      os.kill(os.getpid(), signal.SIGKILL)
    return super().prepare(example, tok)


@dataclasses.dataclass(frozen=True)
class Curious(Spell):
  """Stores whether its process has loaded jax, and which process it is, as sequences of two letters."""

  def prepare(self, example, tok):
    letters = np.array([ord("a") + ("jax" in sys.modules), os.getpid() % 50_000], np.int32)
    return [{"tokens": letters, "size": np.int32(2)}]


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(columns, "_checksum", fail)
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path)
  assert not list((tmp_path / "store").iterdir())


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_store(tmp_path):
  source = Texts(("ab", "die", "cde"))
  code = f"""
from pathlib import Path
from tests.data.store_test import Deadly, Letters, Texts, store
store.build(Texts({source.texts!r}), Letters(), Deadly(), Path({str(tmp_path)!r}))
"""
  assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == -signal.SIGKILL
  (half,) = (tmp_path / "store").iterdir()
  assert not (half / "index.json").exists()
  assert build(tmp_path, source, Spell()).num_sequences == 3


MANY = Texts(tuple(chr(97 + i % 26) * (i % 40) for i in range(3000)))


@pytest.fixture
def small_chunks(monkeypatch):
  """Chunks of a few dozen examples, all but two of them in workers."""
  monkeypatch.setattr(encode, "CHUNK", 5000)
  monkeypatch.setattr(encode, "ALONE", 2)
  monkeypatch.setattr(encode, "WORTH", 0.0)


@pytest.mark.usefixtures("small_chunks")
def test_workers_write_the_same_bytes(tmp_path):
  alone = build(tmp_path / "alone", MANY, workers=1).path
  beside = build(tmp_path / "beside", MANY, workers=2).path
  files = sorted(path.name for path in alone.iterdir())
  assert files == sorted(path.name for path in beside.iterdir())
  assert [(alone / name).read_bytes() for name in files] == [(beside / name).read_bytes() for name in files]
  values, offsets = encode.collect(sequence for e in MANY for sequence in Spell().prepare(e, Letters()))["tokens"]
  for part, array in (("values", values.astype(np.uint16)), ("offsets", offsets)):
    np.save(tmp_path / "x.npy", array)
    assert (beside / f"tokens.{part}.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()


@pytest.mark.usefixtures("small_chunks")
def test_workers_are_other_processes_and_load_no_jax_of_their_own(tmp_path):
  built = build(tmp_path, MANY, Curious(), workers=2)
  loaded, process = np.asarray(built.values("tokens")).reshape(-1, 2).T
  here = process == os.getpid() % 50_000
  assert 0 < here.sum() < len(here) / 4, "the first two chunks"
  assert set(loaded[~here]) == {ord("a")}


def test_a_build_holds_a_few_chunks(tmp_path, monkeypatch):
  monkeypatch.setattr(encode, "CHUNK", 50_000)
  monkeypatch.setattr(Texts, "fingerprint", lambda source: "many")
  source = Texts(("x" * 500,) * 8000)
  tracemalloc.start()
  assert int(build(tmp_path, source, workers=1).lengths.sum()) == 4_000_000
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 4_000_000, "the tokens are 16 MB, those of a chunk 0.2 MB"


def test_workers_are_not_started_for_little(tmp_path, monkeypatch):
  monkeypatch.setattr(encode, "CHUNK", 500)
  monkeypatch.setattr(encode, "_in_workers", None)
  assert build(tmp_path, MANY, workers=2).num_sequences == 3000


@pytest.mark.usefixtures("small_chunks")
def test_a_worker_that_dies_is_one_clear_line(tmp_path):
  with pytest.raises(ConfigError, match="a worker process died; a script"):
    build(tmp_path, Texts((*MANY.texts, "die")), Deadly(), workers=2)
  assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize("large", [(), (2999,), (0,), (1500, 1501)])
@pytest.mark.usefixtures("small_chunks")
def test_a_large_value_anywhere_widens_the_whole_column(large, tmp_path):
  source = Texts(tuple("\U0001f600" if i in large else text for i, text in enumerate(MANY.texts)))
  built = build(tmp_path, source, workers=1)
  assert built.values("tokens").dtype == (np.int32 if large else np.uint16)
  assert "".join(map(chr, built.values("tokens"))) == "".join(source.texts)
  assert {path.suffix for path in built.path.iterdir()} == {".npy", ".json"}


def test_a_build_says_its_size_and_how_far_it_is(tmp_path, capsys):
  build(tmp_path)
  assert "tokenised data 'texts', split 'train': 3 examples, 5 tokens, 0.0 MB, in 0." in capsys.readouterr().out
  build(tmp_path)
  assert not capsys.readouterr().out
  now = iter([100.0, 105.0, 120.0, 121.0])
  progress = encode.make_progress("text", 400, clock=lambda: next(now))
  for done in (50, 100, 110):
    progress(done, done * 400_000)
  assert capsys.readouterr().err == "tokenising text: 100 of 400 examples, 2.00 M tokens/s, 60 s left\n"


def test_racing_builders_agree(tmp_path):
  found = []
  threads = [threading.Thread(target=lambda: found.append(build(tmp_path))) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == [found[0]] * 6
  assert list((tmp_path / "store").iterdir()) == [found[0].path]


def test_others_may_read_a_shared_store_as_the_umask_says(tmp_path):
  (tmp_path / "plain").mkdir()
  assert stat.S_IMODE(build(tmp_path).path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize(("texts", "message"), [((), "no examples"), (("", ""), "no example gives a sequence")])
def test_nothing_to_store_is_one_clear_line(texts, message, tmp_path):
  with pytest.raises(ConfigError, match=f"data 'texts', split 'train': {message}"):
    build(tmp_path, source=Texts(texts))
  assert not list(tmp_path.glob("store/*"))


def test_a_cache_that_cannot_be_written_is_one_clear_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match="config.cache_dir: .*cannot be written"):
    build(tmp_path / "file")


def test_a_column_that_only_some_sequences_have_is_refused(tmp_path):
  class Uneven(Spell):
    def prepare(self, example, tok):
      (sequence,) = super().prepare(example, tok)
      return [sequence | ({"extra": np.int32(1)} if example["text"] == "cde" else {})]

  with pytest.raises(AssertionError, match="sequence 2"):
    build(tmp_path, task=Uneven())


def test_identity_is_the_tokenizer_and_the_kind_of_task_too(tmp_path):
  class Capitals(Letters):
    def fingerprint(self):
      return "capitals"

  class Spelled(Spell):
    pass

  first = build(tmp_path)
  assert store.build(SOURCE, Capitals(), Spell(), tmp_path) != first
  assert build(tmp_path, task=Spelled()) != first


def test_identity_is_the_chat_template_where_a_task_writes_in_it(tmp_path):
  class Asking(Letters):
    chat_template = "{{ messages }}"

  class Written(Spell):
    prepare_fields = ("offset", "template")
    template = ""

  assert store.find(SOURCE, Asking(), Spell(), tmp_path) == store.find(SOURCE, Letters(), Spell(), tmp_path)
  assert store.find(SOURCE, Asking(), Written(), tmp_path) != store.find(SOURCE, Letters(), Written(), tmp_path)
