"""Files of tensors that are cut off, made up or not there: one line that names the file, and what is in order is read."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.config import ConfigError
from lm.interop import tensors
from lm.interop.tensors import INDEX, SINGLE
from tests.interop.directories import GOLDEN

FILE = GOLDEN / "llama-untied" / SINGLE
WHOLE = FILE.read_bytes()
NAMES = sorted(load_file(FILE))


def with_header(header, data=b"\0" * 64):
  """A file with any JSON as its header."""
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + data


def entry(**changes):
  return with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes})


BAD = {
  "empty": (b"", "header of 0 bytes"),
  "cut within the length": (WHOLE[:3], "cut off"),
  "cut within the header": (WHOLE[:100], "cut off"),
  "cut within the data": (WHOLE[:-10], "cut off.* does not end within"),
  "garbage": (b"\0garbage" * 1000, "not a safetensors file"),
  "a zip file": (b"PK\x03\x04" * 1000, "not a safetensors file"),
  "no JSON": ((20).to_bytes(8, "little") + b"\xff\xfe" * 40, "not a safetensors file"),
  "nested too deep": ((100_000).to_bytes(8, "little") + b"[" * 100_000, "not a safetensors file"),
  "a list": (with_header([1, 2, 3]), "no JSON object"),
  "a tensor that is a text": (with_header({"a": "b"}), "its header says of a"),
  "a tensor without place": (with_header({"a": {"dtype": "F32"}}), "its header says of a"),
  "a place before the data": (entry(data_offsets=[-4, 0]), "its header says of a"),
  "a place without end": (entry(data_offsets=[0]), "its header says of a"),
  "a shape that is a text": (entry(shape="x"), "its header says of a"),
  "a dtype that is a list": (entry(dtype=["F32"]), "its header says of a"),
  "bytes of another shape": (entry(shape=[2]), r"a has 4 bytes, not those of F32 \[2\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_that_names_it(case, tmp_path):
  data, words = BAD[case]
  (tmp_path / SINGLE).write_bytes(data)
  with pytest.raises(ConfigError, match=f"model.safetensors: .*{words}") as caught:
    tensors.scan(tmp_path)
  assert "\n" not in str(caught.value)


def shards(folder):
  """The golden tensors in two files, and their index."""
  values = load_file(FILE)
  files = {name: f"{i % 2}.safetensors" for i, name in enumerate(NAMES)}
  for file in set(files.values()):
    save_file({name: values[name] for name in NAMES if files[name] == file}, folder / file)
  return files


def test_shards_are_one_set_of_tensors(tmp_path):
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards(tmp_path)}))
  found, expected = tensors.scan(tmp_path), load_file(FILE)
  assert sorted(found) == NAMES
  for name in NAMES:
    np.testing.assert_array_equal(found[name].read(), expected[name])


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda files: files | {NAMES[0]: "2.safetensors"}, "names the file 2.safetensors, which is not there"),
    (lambda files: files | {"foo": "1.safetensors", "bar": "0.safetensors"}, "not in the files that it names: bar, foo"),
    (lambda files: files | {NAMES[0]: "1.safetensors"}, f"not in the files that it names: {NAMES[0]}"),
    (lambda _: ["0.safetensors"], "not an index"),
    (lambda _: {NAMES[0]: 1}, "not an index"),
  ],
)
def test_an_index_that_does_not_fit_is_one_line_that_names_it(change, words, tmp_path):
  (tmp_path / INDEX).write_text(json.dumps({"weight_map": change(shards(tmp_path))}))
  with pytest.raises(ConfigError, match=f"index.json: {words}"):
    tensors.scan(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "{}"])
def test_an_index_of_another_kind_is_one_line(text, tmp_path):
  (tmp_path / INDEX).write_text(text)
  with pytest.raises(ConfigError, match="index.json: not an index"):
    tensors.scan(tmp_path)


def test_a_pickle_is_not_read(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(WHOLE)
  with pytest.raises(ConfigError, match="has pytorch_model.bin but no model.safetensors; a pickle runs code"):
    tensors.scan(tmp_path)


def test_no_file_at_all_says_what_is_looked_for(tmp_path):
  with pytest.raises(ConfigError, match=f"no {SINGLE} and no {INDEX}"):
    tensors.scan(tmp_path)


def test_equal_tensors_are_equal_in_every_piece(tmp_path, monkeypatch):
  monkeypatch.setattr(tensors, "PIECE", 4)
  a = np.arange(10, dtype=np.float32)
  others = {
    "same": a,
    "last": a + (a == 9),
    "shape": a.reshape(2, 5),
    "whole": a.astype(np.int32),
    "half": a.astype(np.float16),
  }
  save_file({"a": a, **{name: np.ascontiguousarray(value) for name, value in others.items()}}, tmp_path / SINGLE)
  found = tensors.scan(tmp_path)
  assert [name for name in others if tensors.equal(found["a"], found[name])] == ["same", "half"]
