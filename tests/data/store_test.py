"""A store is built once per identity, holds what `prepare` gave, and is rebuilt when its files are not whole."""

import dataclasses
import json
import stat
import threading

import numpy as np
import pytest

from lm.config import ConfigError
from lm.data import store
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


def build(cache_dir, source=SOURCE, task=Spell()):  # noqa: B008 - frozen
  return store.build(source, Letters(), task, cache_dir)


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


def test_an_index_that_names_other_columns_is_damage(tmp_path, capsys):
  path = build(tmp_path).path / "index.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"columns": ["tokens"]}))
  assert build(tmp_path).columns == ("size", "tokens")
  assert "damaged (index.json)" in capsys.readouterr().out


def test_a_killed_build_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(store.np, "save", fail)
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path)
  assert not list((tmp_path / "store").iterdir())


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
  with pytest.raises(ConfigError, match="config.cache_dir="):
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
