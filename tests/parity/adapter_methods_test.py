"""Adapters of every method that peft has, both ways: what peft wrote is read here, what a run leaves is read there."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from lm import convert
from lm.config import ConfigError
from lm.interop import adapter, load_pretrained
from tests.parity import oracle
from tests.parity.adapter_test import TOKENS, logits_here, logits_there, make_base, tune

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity
torch = oracle.torch
ADALORA = {"init_r": 4, "target_r": 2, "total_step": 9}
NUM = 5  # virtual tokens
# What peft wrote: model, config, its settings; kernels that are fused, (IA)^3 on either side, layers without an adapter.
WRITTEN = [
  ("llama-untied", "LoraConfig", {"use_dora": True, "target_modules": "all-linear", "r": 3, "rank_pattern": {"q_proj": 2}}),
  ("gpt2-lm", "LoraConfig", {"use_dora": True, "target_modules": ["c_attn"], "r": 3, "layers_to_transform": [1]}),
  ("bert-classifier", "LoraConfig", {"use_dora": True, "target_modules": ["query", "dense"], "task_type": "SEQ_CLS"}),
  ("llama-untied", "AdaLoraConfig", {**ADALORA, "target_modules": ["q_proj", "down_proj"], "lora_alpha": 6}),
  ("bert-classifier", "AdaLoraConfig", {**ADALORA, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
  ("gpt2-lm", "AdaLoraConfig", {**ADALORA, "target_modules": ["c_attn"]}),
  ("llama-untied", "IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
  ("bert-classifier", "IA3Config", {"target_modules": ["key", "value"], "feedforward_modules": [], "task_type": "SEQ_CLS"}),
  ("gpt2-lm", "IA3Config", {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]}),
  ("llama-untied", "PrefixTuningConfig", {"num_virtual_tokens": NUM, "task_type": "CAUSAL_LM"}),
  ("qwen3", "PrefixTuningConfig", {"num_virtual_tokens": NUM, "task_type": "CAUSAL_LM", "prefix_projection": True}),
  ("gpt2-lm", "PrefixTuningConfig", {"num_virtual_tokens": NUM, "task_type": "CAUSAL_LM"}),
  ("bert-classifier", "PrefixTuningConfig", {"num_virtual_tokens": NUM, "task_type": "SEQ_CLS"}),
  ("llama-untied", "PromptTuningConfig", {"num_virtual_tokens": NUM, "task_type": "CAUSAL_LM"}),
  ("gemma2", "PromptTuningConfig", {"num_virtual_tokens": NUM, "task_type": "CAUSAL_LM"}),
  ("llama-classifier", "PromptTuningConfig", {"num_virtual_tokens": NUM, "task_type": "SEQ_CLS"}),
  ("bert-mlm", "PromptTuningConfig", {"num_virtual_tokens": NUM, "task_type": "FEATURE_EXTRACTION"}),
]
# Of runs of ours: base, task, method.
TUNED = [
  ("llama-untied", "causal", {"name": "dora", "targets": ".*(query|down)"}),
  ("gpt2-lm", "causal", {"name": "dora", "targets": ".*attention/(query|value)"}),
  ("bert-mlm", "classify", {"name": "dora"}),
  ("llama-untied", "classify", {"name": "adalora", "initial_rank": 4, "target_rank": 2, "prune_from": 0, "prune_until": 2}),
  ("gpt2-lm", "causal", {"name": "adalora", "initial_rank": 4, "target_rank": 2, "prune_from": 0, "prune_until": 2}),
  ("bert-mlm", "mlm", {"name": "adalora", "initial_rank": 3, "target_rank": 3, "targets": ".*(key|out)"}),
  ("llama-untied", "causal", {"name": "ia3"}),
  ("gpt2-lm", "causal", {"name": "ia3", "targets": ".*attention/value"}),
  ("bert-mlm", "classify", {"name": "ia3"}),
  ("llama-untied", "causal", {"name": "prefix", "num_prefix": NUM, "init_stddev": 1.0}),
  ("gpt2-lm", "classify", {"name": "prefix", "num_prefix": NUM, "init_stddev": 1.0}),
  ("bert-mlm", "classify", {"name": "prefix", "num_prefix": NUM, "init_stddev": 1.0}),
  ("llama-untied", "causal", {"name": "prompt", "num_virtual_tokens": NUM}),
  ("llama-tied", "classify", {"name": "prompt", "num_virtual_tokens": NUM}),
  ("bert-mlm", "mlm", {"name": "prompt", "num_virtual_tokens": NUM}),
]


def randomise(model) -> None:
  """What is trained of a model of peft, so that it shows."""
  rng = torch.Generator().manual_seed(3)
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      if "default" not in key or "ranknum" in key:
        continue
      noise = torch.randn(parameter.shape, generator=rng)
      keeps = "modules_to_save" in key or "magnitude" in key or "ia3" in key
      parameter.copy_(parameter + (0.3 * noise if keeps else 0) if keeps else (0.3 if parameter.ndim > 1 else 0.1) * noise)


def write(name: str, folder: Path, kind: str, prune=False, **settings) -> np.ndarray:
  """The logits of an adapter of random numbers that peft wrote beside its base."""
  base = make_base(name, folder / name)
  torch.manual_seed(4)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = peft.get_peft_model(oracle.load(name, base), getattr(peft, kind)(**settings))
  randomise(model)
  if prune:
    keys = [key.removeprefix("base_model.model.") for key, _ in model.named_parameters() if "lora_E" in key]
    pattern = {key: [True, False, i % 2 == 0, False] for i, key in enumerate(keys)}
    model.peft_config["default"].rank_pattern = pattern
    model.base_model.resize_modules_by_rank_pattern(pattern, "default")
  model.save_pretrained(folder / "adapter")
  found = oracle.outputs(model.eval(), TOKENS)["logits"]
  in_front = NUM if kind == "PromptTuningConfig" and found.ndim == 3 else 0
  return found[:, in_front:]


@pytest.mark.parametrize(("name", "kind", "settings"), WRITTEN, ids=lambda value: value if isinstance(value, str) else "")
def test_what_peft_wrote_computes_the_same_here(name, kind, settings, tmp_path):
  expected = write(name, tmp_path, kind, **settings)
  got = logits_here(tmp_path / "adapter")
  assert np.abs(got - logits_here(tmp_path / name)).max() > 0.02
  np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-5)


def test_pruned_ranks_are_read(tmp_path):
  expected = write("llama-untied", tmp_path, "AdaLoraConfig", prune=True, **ADALORA, target_modules=["q_proj", "up_proj"])
  np.testing.assert_allclose(logits_here(tmp_path / "adapter"), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "task", "method"), TUNED, ids=lambda value: value if isinstance(value, str) else value["name"]
)
def test_peft_computes_what_a_run_computes(name, task, method, tmp_path):
  base = make_base(name, tmp_path / name)
  tune(task, base, tmp_path / "run", method)
  convert.export_adapter(str(tmp_path / "run"), tmp_path / "adapter")
  expected = logits_here(tmp_path / "run")
  got = logits_there(base, tmp_path / "adapter", task)
  np.testing.assert_allclose(got[:, -expected.shape[1] :], expected, atol=1e-4)
  np.testing.assert_allclose(logits_here(tmp_path / "adapter"), expected, atol=1e-5)
  if task != "classify":
    assert np.abs(expected - logits_here(base)).max() > 0.05
  if method["name"] == "adalora" and method["target_rank"] < method["initial_rank"]:
    pattern = json.loads((tmp_path / "adapter" / adapter.CONFIG).read_text())["rank_pattern"]
    assert 0 < sum(map(sum, pattern.values())) < sum(map(len, pattern.values()))


@pytest.mark.parametrize(
  ("name", "kind", "words"),
  [
    ("gemma2", "PrefixTuningConfig", "peft lets windows of local layers pass over a prefix"),
    ("bert-classifier", "PromptTuningConfig", "peft classifies what stands first, which is the prompt"),
  ],
)
def test_what_peft_computes_otherwise_is_refused(name, kind, words, tmp_path):
  write(name, tmp_path, kind, num_virtual_tokens=NUM, task_type="SEQ_CLS" if "classifier" in name else "CAUSAL_LM")
  with pytest.raises(ConfigError, match=words):
    load_pretrained(tmp_path / "adapter")
