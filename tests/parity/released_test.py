"""Files as they lie on the Hub: configs of older releases, old names, other tensors beside, shards, half precision."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.interop import load_pretrained
from tests.parity import oracle
from tests.parity.agreement import assert_agree, random_tokens
from tests.parity.families import LEGACY, VOCAB, WINDOW

pytestmark = pytest.mark.parity
TOKENS = random_tokens(np.random.default_rng(3), 2, 5 * WINDOW, vocab=VOCAB)
ALL = np.ones_like(TOKENS)


def made(name, tmp_path):
  """A variant's folder, and what transformers computes with it."""
  oracle.make(name, tmp_path / name)
  return tmp_path / name, oracle.outputs(oracle.load(name, tmp_path / name), TOKENS)


def rewrite(directory, change):
  """Replaces the tensors of a folder by change(tensors)."""
  path = directory / "model.safetensors"
  save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", LEGACY)
def test_config_before_transformers_5(name, tmp_path):
  directory, expected = made(name, tmp_path)
  path = directory / "config.json"
  gone, old = LEGACY[name]
  fields = {key: value for key, value in json.loads(path.read_text()).items() if key not in gone}
  path.write_text(json.dumps(fields | old))
  # Transformers reads the old form alike, so it is written as it was.
  assert_agree(oracle.outputs(oracle.load(name, directory), TOKENS), expected, ALL)
  assert_agree(load_pretrained(directory).run(TOKENS), expected, ALL)


def test_gpt2_as_released(tmp_path):
  """No prefix, and the masks of old versions beside."""
  directory, expected = made("gpt2-lm", tmp_path)

  def old(tensors):
    masks = {f"h.{i}.attn.bias": np.tri(8, dtype=np.float32)[None, None] for i in range(3)}
    return {key.removeprefix("transformer."): value for key, value in tensors.items()} | masks

  rewrite(directory, old)
  assert_agree(load_pretrained(directory).run(TOKENS), expected, ALL)


def test_bert_as_released(tmp_path):
  """gamma and beta, the pooler and the next-sentence head beside, the tied table once more."""
  directory, expected = made("bert-mlm", tmp_path)

  def old(tensors):
    old_name = lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    beside = {
      "bert.pooler.dense.weight": np.ones((32, 32), np.float32),
      "bert.pooler.dense.bias": np.ones(32, np.float32),
      "cls.seq_relationship.weight": np.ones((2, 32), np.float32),
      "cls.seq_relationship.bias": np.ones(2, np.float32),
      "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].copy(),
      "bert.embeddings.position_ids": np.arange(160)[None],
    }
    return {old_name(key): value for key, value in tensors.items()} | beside

  rewrite(directory, old)
  assert_agree(oracle.outputs(oracle.AUTO["mlm"].from_pretrained(directory), TOKENS), expected, ALL)
  assert_agree(load_pretrained(directory).run(TOKENS), expected, ALL)


def test_the_tied_table_written_twice(tmp_path):
  directory, expected = made("llama-tied", tmp_path)
  rewrite(directory, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
  assert_agree(load_pretrained(directory).run(TOKENS), expected, ALL)


def test_shards(tmp_path):
  directory, expected = made("qwen3-moe", tmp_path)
  oracle.load("qwen3-moe", directory).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
  assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
  assert_agree(load_pretrained(tmp_path / "shards").run(TOKENS), expected, ALL)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly(dtype, tmp_path):
  directory, _ = made("qwen2", tmp_path)
  model = oracle.load("qwen2", directory).to(getattr(oracle.torch, dtype))
  shutil.rmtree(directory)
  model.save_pretrained(directory)
  assert json.loads((directory / "config.json").read_text())["dtype"] == dtype
  assert_agree(load_pretrained(directory).run(TOKENS), oracle.outputs(oracle.load("qwen2", directory), TOKENS), ALL)


def test_a_tensor_that_is_missing_is_named(tmp_path):
  directory, _ = made("llama-untied", tmp_path)
  lost = "model.layers.1.mlp.up_proj.weight"
  rewrite(directory, lambda tensors: {key: value for key, value in tensors.items() if key != lost})
  with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
    load_pretrained(directory)
