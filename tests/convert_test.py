"""python -m tools.convert: there and back, what is refused, and how much memory an import takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from experiments.import_memory.measure import JAX_ALONE, cost
from lm import convert, saved, tree
from lm.config import ConfigError
from lm.data.tokenizer import Bytes
from lm.interop import load_pretrained, sentence
from lm.tasks.embed import Encoder
from tests.conftest import CACHE, LABELS, TEXTS
from tests.interop.directories import GOLDEN, change, make

ROOT = Path(__file__).parent.parent
LLAMA, BERT = str(GOLDEN / "llama-untied"), str(GOLDEN / "bert-mlm")


@pytest.mark.parametrize(
  ("preset", "kind", "task"),
  [("bert-base-uncased", "classifier", "classify"), ("bert-base-uncased", "mlm", "mlm"), ("llama-3.1-8b", "lm", "causal")],
)
def test_there_and_back_keeps_parameters_tokenizer_labels_and_token_ids(preset, kind, task, tmp_path):
  first = make(tmp_path / "first", preset, kind)
  assert convert.import_checkpoint(str(first), tmp_path / "work").endswith(f"heads: {task}")
  convert.export_checkpoint(str(tmp_path / "work"), tmp_path / "second")
  convert.import_checkpoint(str(tmp_path / "second"), tmp_path / "again")
  models = [load_pretrained(tmp_path / name) for name in ("first", "work", "second", "again")]
  for model in models[1:]:
    assert model.model == models[0].model
    assert tree.sha256(model.params) == tree.sha256(models[0].params)
    assert model.token_ids == models[0].token_ids and model.token_ids["pad_token_id"] == Bytes().pad_id
    assert model.labels == models[0].labels == (tuple(sorted(set(LABELS))) if kind == "classifier" else ())
    assert model.tokenizer.encode(TEXTS[0]) == Bytes().encode(TEXTS[0])
  configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")]
  assert configs[0] == configs[1]
  assert "imported from" in (tmp_path / "second" / "README.md").read_text()


def test_an_import_says_what_it_leaves_out(tmp_path):
  more = lambda tensors: tensors | {"cls.seq_relationship.weight": np.zeros((2, 16), np.float32)}
  said = convert.import_checkpoint(str(change(tmp_path / "x", "bert-mlm", more)), tmp_path / "work")
  assert said.endswith("heads: mlm; left out: cls.seq_relationship.weight")


def test_an_imported_workdir_is_used_as_the_directory_is(tmp_path):
  convert.import_checkpoint(str(make(tmp_path / "first", "bert-base-uncased", "classifier")), tmp_path / "work")
  models = [lm.load(tmp_path / name, devices=jax.devices()[:1]) for name in ("first", "work")]
  found, expected = (model.predict(TEXTS[:3]) for model in models)
  assert found == expected
  np.testing.assert_array_equal(models[0].embed(TEXTS[:3]), models[1].embed(TEXTS[:3]))


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("first", False)])
def test_a_directory_of_sentence_transformers_says_how_it_embeds_and_so_does_an_export(pooling, normalize, tmp_path):
  first = make(tmp_path / "first", "bert-base-uncased")
  sentence.write(first, pooling, normalize, 16, 20)
  convert.import_checkpoint(str(first), tmp_path / "work")
  convert.export_checkpoint(str(tmp_path / "work"), tmp_path / "second")
  models = [lm.load(tmp_path / name, devices=jax.devices()[:1]) for name in ("first", "work", "second")]
  assert [model.tasks["embed"].reader for model in models] == [Encoder(pooling, normalize)] * 3
  assert models[0].max_len == 20
  vectors = [model.embed(["a b", "c"]) for model in models]
  np.testing.assert_array_equal(vectors[0], vectors[1])
  np.testing.assert_array_equal(vectors[0], vectors[2])
  assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1) == normalize


def test_another_way_to_embed_is_one_line(tmp_path):
  first = make(tmp_path / "first", "bert-base-uncased")
  sentence.write(first, "mean", True, 16, 20)
  (first / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
  with pytest.raises(ConfigError, match="config.json: has pooling_mode_max_tokens; accepted is one of"):
    lm.load(first)
  (first / "modules.json").write_text('[{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": ""}]')
  with pytest.raises(ConfigError, match=r"modules.json: has Transformer, Dense; accepted are"):
    lm.load(first)


def test_an_import_is_written_in_parts(tmp_path):
  convert.import_checkpoint(BERT, tmp_path / "work")
  metadata = json.loads((tmp_path / "work" / "checkpoints" / "0" / "params" / "array_metadatas" / "process_0").read_text())
  chunks = {
    entry["array_metadata"]["param_name"]: entry["array_metadata"]["write_shape"] for entry in metadata["array_metadatas"]
  }
  assert chunks["backbone.embed.embedding"][0] == 64 // 8
  assert chunks["backbone.blocks.ffn.up.kernel"][0] == 1
  _, params = saved.load_params(tmp_path / "work")
  assert tree.sha256(tree.unflatten(params)) == tree.sha256(load_pretrained(BERT).params)


def refuse(words, call, *arguments):
  with pytest.raises(ConfigError, match=words) as caught:
    call(*arguments)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", [convert.import_checkpoint, convert.export_checkpoint])
def test_nothing_is_overwritten(call, tmp_path):
  (tmp_path / "file").write_text("kept")
  refuse("--to=.*: holds something already", call, LLAMA, tmp_path)
  refuse("--to=.*file: not a folder", call, LLAMA, tmp_path / "file")
  assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_a_workdir_is_not_imported(tmp_path):
  refuse("is the workdir of a run already", convert.import_checkpoint, str(ROOT / "tests" / "formats" / "1"), tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_table_is_refused_everywhere(tmp_path):
  folder = make(tmp_path / "first", "bert-base-uncased", "mlm")
  small = change(tmp_path / "changed", "bert-mlm")
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (small / name).write_bytes((folder / name).read_bytes())
  words = "its tokenizer has 261 pieces, its embedding table 64 rows"
  refuse(words, convert.import_checkpoint, str(small), tmp_path / "out")
  refuse(words, load_pretrained, small)
  refuse(words, lm.load, small)
  assert not (tmp_path / "out").exists()


ARRAYS = {
  "no tokens": ({"x": [[1]]}, "has x; accepted are tokens and segment_ids, positions, attention_mask"),
  "one dim": ({"tokens": [1, 2]}, r"tokens: expected \[B, T\], got the shape \[2\]"),
  "no rows": ({"tokens": np.zeros((0, 3), int)}, r"tokens: expected \[B, T\], got the shape \[0, 3\]"),
  "fractions": ({"tokens": [[1.5]]}, "tokens: expected integers, got float64"),
  "above the vocabulary": ({"tokens": [[1, 64]]}, "tokens: has 64, accepted are 0 to 63"),
  "above 32 bits": ({"tokens": [[2**32]]}, "tokens: has 4294967296, accepted are 0 to 63"),
  "negative": ({"tokens": [[-1]]}, "tokens: has -1, accepted are 0 to 63"),
  "both masks": ({"tokens": [[1]], "segment_ids": [[1]], "attention_mask": [[1]]}, "segment_ids and attention_mask: give one"),
  "another shape": ({"tokens": [[1]], "attention_mask": [[1, 1]]}, r"attention_mask: expected the shape of tokens \[1, 1\]"),
  "another mask": ({"tokens": [[1]], "attention_mask": [[2]]}, "attention_mask: has 2, accepted are 0 to 1"),
  "negative segment": ({"tokens": [[1]], "segment_ids": [[-1]]}, "segment_ids: has -1"),
  "too long": ({"tokens": [[1] * 65]}, "positions: has 64, accepted are 0 to 63"),
  "far position": ({"tokens": [[1]], "positions": [[64]]}, "positions: has 64, accepted are 0 to 63"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_a_model_has_no_rows_for_are_refused(case, tmp_path):
  arrays, words = ARRAYS[case]
  np.savez(tmp_path / "in.npz", **arrays)
  refuse(words, convert.check, BERT, tmp_path / "in.npz", tmp_path / "out.npz")
  assert not (tmp_path / "out.npz").exists()


def test_rotary_positions_have_no_end(tmp_path):
  np.savez(tmp_path / "in.npz", tokens=[[1, 2]], positions=[[200, 201]])
  convert.check(LLAMA, tmp_path / "in.npz", tmp_path / "out.npz")
  with np.load(tmp_path / "out.npz") as found:
    assert {name: found[name].shape for name in found} == {"hidden_states": (3, 1, 2, 16), "logits": (1, 2, 64)}


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04junk", np.ones(3).tobytes()])
def test_an_input_that_is_no_npz_is_one_line(data, tmp_path):
  (tmp_path / "in.npz").write_bytes(data)
  refuse("--input=.*in.npz: not an npz file", convert.check, BERT, tmp_path / "in.npz", tmp_path / "out.npz")
  refuse("not a file in a folder that exists", convert.check, BERT, tmp_path / "in.npz", tmp_path / "no" / "out.npz")


def cut(folder):
  path = change(folder / "cut") / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-10])


OFFLINE, UNREACHABLE = {"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:1"}
HUB = ["import", "--from", "someone/model", "--to", "out"]
COMMANDS = {
  "cut import": (["import", "--from", "cut", "--to", "out"], OFFLINE, "cut/model.safetensors: cut off"),
  "cut export": (["export", "--from", "cut", "--to", "out"], OFFLINE, "cut/model.safetensors: cut off"),
  "no input": (["check", "--from", "cut", "--input", "x.npz", "--output", "out"], OFFLINE, "--input=x.npz: not an npz file"),
  "no folder": (["import", "--from", "./missing", "--to", "out"], OFFLINE, "--from=./missing: no such folder"),
  "offline": (HUB, OFFLINE, "--from=someone/model: no such folder, and the hub does not give it"),
  "no network": (HUB, UNREACHABLE, "--from=someone/model: no such folder, and the hub does not give it"),
  "not empty": (["export", "--from", LLAMA, "--to", "cut"], OFFLINE, "--to=cut: holds something already"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_is_one_line_with_code_2_and_writes_nothing(case, tmp_path):
  argv, network, words = COMMANDS[case]
  cut(tmp_path)
  before = sorted(tmp_path.rglob("*"))
  env = {**os.environ, **network, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "HF_HOME": str(CACHE / "hub")}
  command = [sys.executable, "-m", "tools.convert", *argv]
  done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith(f"error: {words}" if words.startswith("--") else "error: "), done.stderr
  assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_an_import_peaks_below_its_bytes_and_one_gigabyte(tmp_path, monkeypatch):
  code = "import sys; from pathlib import Path; from experiments.import_memory.measure import write_checkpoint;"
  code += "print(write_checkpoint(Path(sys.argv[1]), 1, 'float32'))"
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")
  (tmp_path / "from").mkdir()
  num_bytes = int(subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "from")], text=True))
  found = cost("-m", "tools.convert", "import", "--from", str(tmp_path / "from"), "--to", str(tmp_path / "to"))
  assert cost("-c", JAX_ALONE).peak < found.peak < num_bytes + 10**9
