"""Every method in peft's format without peft: written from random leaves and read again, the logits are the same."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm import plug, tree
from lm.config import ConfigError
from lm.interop import adapter, load_pretrained, tensors
from lm.interop.adapters.format import Trained
from tests.interop.directories import make

TOKENS = np.random.default_rng(0).integers(10, 250, (2, 20))
METHODS = {
  "lora": "lora(rank=3,alpha=5,scaling=alpha_over_sqrt_rank)",
  "dora": "dora(rank=3,targets='.*(query|down)')",
  "adalora": "adalora(initial_rank=4,target_rank=2,alpha=6,prune_from=1,prune_until=2)",
  "ia3": "ia3",
  "prefix": "prefix(num_prefix=4,init_stddev=1.0)",
  "prompt": "prompt(num_virtual_tokens=4)",
}
CASES = [
  *(("llama-3.1-8b", "lm", name) for name in METHODS),
  *(("gpt2", "lm", name) for name in ("lora", "dora", "adalora", "ia3")),  # fused kernels
  *(("bert-base-uncased", "classifier", name) for name in ("dora", "ia3", "prefix")),
]
# What is written of one leaf of the first layer, by method: of a fused kernel, all of its parts.
STORED = {"dora": "lora_magnitude_vector", "adalora": "lora_E", "ia3": "ia3_l", "prefix": "prompt_embeddings"}


def tuned(folder, name):
  """The model of a directory with random leaves of a method."""
  base = load_pretrained(folder)
  method = plug.make("peft", plug.parse_plug("peft", METHODS[name]))
  flat = tree.flatten(base.params)
  boxes = {key: box.replace(value=flat[key]) for key, box in tree.flatten(base.model.abstract).items()}
  attached = tree.flatten(nn.unbox(method.attach(tree.unflatten(boxes), jax.random.key(0))))
  rng = np.random.default_rng(1)
  leaves = {key: np.asarray(x) + rng.normal(size=x.shape).astype("f") for key, x in attached.items() if key not in flat}
  for key in (key for key in leaves if key.endswith("/lambda")):
    leaves[key][..., 1:3] = 0  # pruned
    leaves[key][0] = 0
  params = tree.unflatten(flat | leaves)
  return dataclasses.replace(base, model=dataclasses.replace(base.model, tuner=method), params=params), base


def write(folder, name, model):
  """As the adapter of a run would be."""
  method = model.model.tuner
  plain = dataclasses.replace(model.exported, tuner=None)
  adapter.write(folder / "adapter", Trained(plain, tree.flatten(model.params), method, 10), "../base", f"hash of {name}")
  return folder / "adapter"


@pytest.mark.parametrize(("preset", "kind", "name"), CASES)
def test_what_is_written_is_read_again(preset, kind, name, tmp_path):
  model, base = tuned(make(tmp_path / "base", preset, kind), name)
  folder = write(tmp_path, name, model)
  expected, again = model.run(TOKENS), load_pretrained(folder)
  assert np.abs(expected["hidden_states"] - base.run(TOKENS)["hidden_states"]).max() > 1e-3
  for part, array in again.run(TOKENS).items():
    np.testing.assert_allclose(array, expected[part], atol=2e-5, err_msg=part)
  assert again.token_ids == base.token_ids
  assert adapter.base_hash(folder) == f"hash of {name}"
  if name in STORED:
    found = load_file(folder / adapter.FILE)
    assert any(key.endswith(STORED[name]) for key in found)
    for key in (key for key in found if key.endswith("lora_E")):
      assert found[key].all() or len(found[key]) == 1  # what is pruned is left out, but one
  assert bool(again.model.tuner) == (name in ("prefix", "prompt"))


def change(folder, settings, values=None):
  """Other settings, and tensors added or replaced."""
  path = folder / adapter.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | settings))
  save_file(load_file(folder / adapter.FILE) | (values or {}), folder / adapter.FILE)


FLOATS = np.ones((4, 32), np.float32)


@pytest.mark.parametrize(
  ("name", "settings", "values", "complaint"),
  [
    ("prefix", {"num_transformer_submodules": 2}, {}, "num_transformer_submodules=2 has no counterpart here; accepted are 1"),
    ("prefix", {"num_virtual_tokens": None}, {}, "adapter_config.json: num_virtual_tokens is not set"),
    ("prefix", {}, {"prompt_embeddings": FLOATS}, r"prompt_embeddings \[4, 32\]; expected are floats \[4, 128\]"),
    ("prompt", {"num_virtual_tokens": 5}, {}, r"prompt_embeddings \[4, 32\]; expected are floats \[5, 32\]"),
    ("ia3", {}, {"base_model.model.model.layers.0.self_attn.v_proj.ia3_l": FLOATS}, r"ia3_l \[4, 32\] of .*v_proj; expected"),
    ("adalora", {"bias": "all"}, {}, "bias='all' has no counterpart here; accepted are 'none'"),
    ("adalora", {"init_r": None}, {}, "init_r is not set"),
    ("adalora", {"init_r": 1}, {}, "has products of rank 2, more than it says"),
  ],
)
def test_what_does_not_fit_is_one_line(name, settings, values, complaint, tmp_path):
  model, _ = tuned(make(tmp_path / "base", "llama-3.1-8b", "lm"), name)
  folder = write(tmp_path, name, model)
  change(folder, settings, values)
  with pytest.raises(ConfigError, match=complaint) as caught:
    load_pretrained(folder)
  assert "\n" not in str(caught.value)


def test_what_peft_computes_otherwise_is_not_written(tmp_path):
  prompt, _ = tuned(make(tmp_path / "base", "bert-base-uncased", "classifier"), "prompt")
  with pytest.raises(ConfigError, match="peft='prompt': the peft library classifies what stands first"):
    write(tmp_path, "prompt", prompt)
  prefix, _ = tuned(make(tmp_path / "gemma", "gemma-2-2b", "lm"), "prefix")
  with pytest.raises(ConfigError, match="peft='prefix': the peft library lets windows of local layers pass over a prefix"):
    write(tmp_path, "prefix", prefix)
  assert not (tmp_path / "adapter").exists()


def test_an_adapter_that_cannot_be_merged_is_no_base(tmp_path):
  model, _ = tuned(make(tmp_path / "base", "gpt2", "lm"), "prefix")
  write(tmp_path, "prefix", model)
  lora, _ = tuned(tmp_path / "base", "lora")
  (tmp_path / "second").mkdir()
  folder = write(tmp_path / "second", "lora", lora)
  change(folder, {"base_model_name_or_path": str(tmp_path / "adapter")})
  with pytest.raises(ConfigError, match="peft='prefix': no plain model computes"):
    load_pretrained(folder)
  assert tensors.read_metadata(folder / adapter.FILE) == {}  # rewritten by `change`, as by peft
