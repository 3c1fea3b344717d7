"""What a worker of the pipeline does, without Beam: any part by itself, from a description that travels as bytes."""

import pickle

import pytest

from lm.config import ConfigError, Plug
from lm.data import beam, parts, place, store
from lm.data import tokenizer as tokenizers
from lm.data.sources.text import Text
from lm.tasks.causal import Causal
from tests.conftest import TEXTS


def write_corpus(folder):
  path = folder / "corpus.txt"
  path.write_text("\n".join([*TEXTS, "one with \U0001f600 in it"]) + "\n")
  return path


def make_work(corpus, cache_dir, num_parts):
  """(work, source)."""
  source, encoder = Text(path=str(corpus)), (tokenizers.load("bytes"), Causal())
  return beam.make_work(Plug("text", (("path", str(corpus)),)), source, encoder, str(cache_dir), num_parts), source


@pytest.mark.parametrize("num_parts", [1, 3, 60])
def test_parts_in_any_order_are_the_local_store(num_parts, tmp_path):
  work, source = make_work(write_corpus(tmp_path), tmp_path / "parts", num_parts)
  for index in reversed(range(num_parts)):
    beam.write_part(index, pickle.loads(pickle.dumps(work)))
  found = place.locate(work.cache_dir, work.name)
  parts.seal(found, num_parts, source)
  alone = store.build(source, tokenizers.load("bytes"), Causal(), tmp_path / "alone", workers=1).path
  assert found.local.name == alone.name
  read = lambda folder: {path.name: path.read_bytes() for path in folder.iterdir()}
  assert read(found.local) == read(alone)


def test_bad_work_is_one_line(tmp_path, monkeypatch):
  corpus = write_corpus(tmp_path)
  with pytest.raises(ConfigError, match="parts=0: accepted are 1"):
    make_work(corpus, tmp_path, 0)
  monkeypatch.setattr(beam.importlib, "import_module", missing)
  work, source = make_work(corpus, tmp_path, 2)
  with pytest.raises(ConfigError, match=r"apache-beam is not installed: pip install 'lm\[beam\]'"):
    beam.build(work, source, [])
  (tmp_path / "empty.txt").touch()
  with pytest.raises(ConfigError, match="no examples"):
    beam.build(*make_work(tmp_path / "empty.txt", tmp_path, 2), [])


def missing(name):
  raise ModuleNotFoundError(name)
