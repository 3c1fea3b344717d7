"""Tensors to parameters and back: what is wrong is listed by name, old spellings, shards, types and meshes change nothing."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lm import config, sharding
from lm.config import ConfigError
from lm.interop import load_pretrained, save_pretrained, weights
from tests.interop.directories import GOLDEN, change

UP = "model.layers.{}.mlp.up_proj.weight"
EMBED, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"


def without(*words):
  return lambda tensors: {name: value for name, value in tensors.items() if not any(word in name for word in words)}


BAD = {
  "missing": ("llama-untied", without("up_proj"), ["missing: layers.0.mlp.up_proj.weight, layers.1.mlp.up_proj.weight"]),
  "unknown": (
    "llama-untied",
    lambda found: found | {"model.foo": found["model.norm.weight"], "bar": found["model.norm.weight"]},
    ["tensors unknown: bar, foo"],
  ),
  "shape": (
    "llama-untied",
    lambda found: found | {UP.format(1): found[UP.format(1)].T},
    ["of another shape: layers.1.mlp.up_proj.weight [16, 24] instead of [24, 16]"],
  ),
  "all at once": (
    "llama-untied",
    lambda found: without("model.norm")(found) | {"x": found["model.norm.weight"], UP.format(0): found[UP.format(0)][:3]},
    ["missing: norm.weight", "unknown: x", "layers.0.mlp.up_proj.weight [3, 16] instead of [24, 16]"],
  ),
  "integers": (
    "llama-untied",
    lambda found: found | {UP.format(1): found[UP.format(1)].astype(np.int8)},
    ["not of a floating-point type: layers.1.mlp.up_proj.weight"],
  ),
  "another model": ("llama-untied", lambda _: {"a": np.zeros(3)}, ["no tensor model.embed_tokens.weight or embed_tokens"]),
  "a tied table that differs": (
    "bert-mlm",
    lambda found: found | {DECODER: found[EMBED] + 1},
    [f"{DECODER} differs from embeddings.word_embeddings.weight, but config.json says that they are tied"],
  ),
  "a tied table of integers": (
    "bert-mlm", lambda found: found | {DECODER: found[EMBED].astype(np.int32)}, [f"{DECODER} differs from"]
  ),
  "with and without a prefix": (
    "llama-untied",
    lambda found: found | {"embed_tokens.weight": found["model.embed_tokens.weight"]},
    ["embed_tokens.weight and model.embed_tokens.weight are two spellings of one tensor"],
  ),
  "old and new names": (
    "bert-mlm",
    lambda found: found | {"bert.embeddings.LayerNorm.gamma": found["bert.embeddings.LayerNorm.weight"]},
    ["LayerNorm.gamma and bert.embeddings.LayerNorm.weight are two spellings"],
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_tensors_that_do_not_fit_are_listed_in_one_line(case, tmp_path):
  name, tensors, words = BAD[case]
  with pytest.raises(ConfigError) as caught:
    weights.scan(change(tmp_path / "changed", name, tensors))
  assert all(word in str(caught.value) for word in words), caught.value
  assert str(tmp_path / "changed") in str(caught.value) and "\n" not in str(caught.value)


def test_an_untied_head_under_a_config_that_ties_it(tmp_path):
  with pytest.raises(ConfigError, match=r"lm_head.weight differs from embed_tokens.weight"):
    weights.scan(change(tmp_path / "changed", "llama-untied", tie_word_embeddings=True))


@pytest.mark.parametrize(
  "names",
  [
    {str(i): f"label {i}" for i in range(5)}, {"0": "a"}, {"0": "a", "1": "a", "2": "b"}, {"1": "a", "2": "b", "3": "c"}, ["a"],
    {"x": "a"},
  ],
)  # fmt: skip
def test_labels_that_do_not_fit_the_classifier(names, tmp_path):
  found = weights.scan(change(tmp_path / "changed", "bert-classifier", id2label=names))
  with pytest.raises(ConfigError, match="id2label=.* of its own for each of the classifier's 3 outputs"):
    weights.labels(found)


def test_labels_and_outputs_without_names(tmp_path):
  assert weights.labels(weights.scan(GOLDEN / "bert-classifier")) == ("low", "middle", "high")
  found = weights.scan(change(tmp_path / "changed", "bert-classifier", id2label=None))
  assert weights.labels(found) == ("LABEL_0", "LABEL_1", "LABEL_2")
  assert weights.labels(weights.scan(GOLDEN / "bert-mlm")) == ()


def old_bert(tensors):
  norms = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
  return {norms(name): value for name, value in tensors.items()} | {
    DECODER: tensors[EMBED],
    "cls.seq_relationship.bias": np.ones(2, np.float32),
    "bert.embeddings.position_ids": np.arange(64),
  }


def bare(prefix):
  return lambda tensors: {name.removeprefix(prefix): value for name, value in tensors.items()}


@pytest.mark.parametrize(
  ("name", "tensors"),
  [("bert-mlm", old_bert), ("bert-mlm", bare("bert.")), ("gpt2-lm", bare("transformer.")), ("qwen2", bare("model."))],
)
def test_other_spellings_are_the_same_parameters(name, tensors, tmp_path):
  assert_same(
    weights.load(weights.scan(change(tmp_path / "changed", name, tensors))), weights.load(weights.scan(GOLDEN / name))
  )


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize(("mesh", "name"), [({"fsdp": 4, "tensor": 2}, "gpt2-lm"), ({"fsdp": 2, "tensor": 2}, "mixtral")])
def test_eight_devices_hold_what_one_holds_by_the_table_of_rules(mesh, name):
  found = weights.scan(GOLDEN / name)
  placed = sharding.by_name(
    jax.eval_shape(found.model.init, jax.random.key(0)), sharding.make_mesh(config.Mesh(**mesh), jax.devices())
  )
  params = weights.load(found, placed)
  assert_same(params, weights.load(found))
  assert {key: value.sharding for key, value in params.items()} == placed
  split = [value for value in params.values() if value.addressable_shards[0].data.size < value.size]
  assert len(split) > len(params) / 3


def test_a_large_model_is_written_as_shards_with_an_index(tmp_path, monkeypatch):
  pretrained = load_pretrained(GOLDEN / "qwen3-moe")
  save_pretrained(pretrained, tmp_path / "one")
  monkeypatch.setattr(weights, "SHARD_BYTES", 5000)
  save_pretrained(pretrained, tmp_path / "several")
  index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
  files = sorted(path.name for path in (tmp_path / "several").glob("*.safetensors"))
  assert files == [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))] and len(files) > 3
  one, several = load_file(tmp_path / "one" / "model.safetensors"), {}
  for file in files:
    part = load_file(tmp_path / "several" / file)
    assert set(part) == {name for name, where in index["weight_map"].items() if where == file}
    assert len(part) == 1 or sum(value.nbytes for value in part.values()) <= 5000
    several |= part
  assert index["metadata"]["total_size"] == sum(value.nbytes for value in one.values())
  assert_same(several, one)
  assert_same(weights.load(weights.scan(tmp_path / "several")), weights.load(weights.scan(tmp_path / "one")))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_written_rounded_and_read_exactly(dtype, tmp_path):
  pretrained = load_pretrained(GOLDEN / "llama-untied")
  assert save_pretrained(pretrained, tmp_path, dtype)["dtype"] == dtype
  with safe_open(tmp_path / "model.safetensors", "np") as stored:
    assert {str(stored.get_slice(name).get_dtype()) for name in stored.offset_keys()} == {
      {"bfloat16": "BF16", "float16": "F16"}[dtype]
    }
  expected = {
    name: value.astype(dtype).astype(np.float32) for name, value in weights.load(weights.scan(GOLDEN / "llama-untied")).items()
  }
  found = weights.load(weights.scan(tmp_path))
  assert all(value.dtype == np.float32 for value in found.values())
  assert_same(found, expected)
