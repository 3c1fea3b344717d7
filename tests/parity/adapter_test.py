"""Adapters of LoRA and the peft library: what a run leaves is read there, what peft writes is read here, with equal logits."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from lm import convert, train
from lm.interop import load_pretrained
from tests.conftest import LABELS, make_run
from tests.data.hf_tokenizer_test import write_files
from tests.parity import oracle
from tests.parity.agreement import random_tokens
from tests.parity.families import VARIANTS

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity
VOCAB = 420  # more than the tokenizers below have
AUTO = {"causal": oracle.AUTO["causal"], "mlm": oracle.AUTO["mlm"], "classify": oracle.AUTO["classifier"]}
TOKENS = random_tokens(np.random.default_rng(5), 3, 40, vocab=VOCAB)
# Base, task, which kernels are adapted. Two kinds of head of the same tensors, parts of fused kernels, names that end alike.
CASES = [
  ("gpt2-lm", "causal", ".*attention/(query|value)"),
  ("gpt2-lm", "classify", ".*(key|out|up|down)"),
  ("llama-untied", "causal", ".*attention/(query|value)"),
  ("llama-tied", "classify", ".*ffn/.*"),
  ("bert-mlm", "mlm", ".*ffn/down"),
  ("bert-mlm", "classify", ".*attention/.*"),
  ("bert-pooler", "classify", ".*"),
  ("modernbert-mlm", "mlm", ".*(query|attention/out|gate)"),
  ("modernbert-mlm", "classify", ".*"),
]


def make_base(name: str, folder: Path) -> Path:
  """A random model of transformers with a tokenizer."""
  oracle.make(name, folder, vocab_size=VOCAB)
  return write_files(folder, "gpt2" if VARIANTS[name].decoder else "bert")


LORA = {"name": "lora", "rank": 3, "alpha": 5.0}


def tune(task: str, base: Path, workdir: Path, method: dict) -> None:
  """Three steps large enough to be seen."""
  pooling = {"pooling": "mean"} if task == "classify" and "modernbert" in base.name else {}
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "total_steps": 3, "eval_every": 3, "best_metric": ""}
  settings |= {"optimizer": {"name": "adamw", "learning_rate": 0.03}, "peft": method}
  train.train(make_run(task, task={"name": task, **pooling}, **settings), workdir)


def logits_here(folder: Path) -> np.ndarray:
  return load_pretrained(folder).run(TOKENS)["logits"]


def logits_there(base: Path, adapter: Path, task: str) -> np.ndarray:
  """Of peft, which must miss no tensor and find none too many."""
  labelled = adapter / "head.json"
  config = {"config": transformers.AutoConfig.from_pretrained(labelled)} if labelled.is_file() else {}
  model = AUTO[task].from_pretrained(base, dtype=oracle.torch.float32, **config)
  with warnings.catch_warnings():
    warnings.simplefilter("error", UserWarning)
    model = peft.PeftModel.from_pretrained(model, adapter)
  assert labelled.is_file() == (task == "classify")
  if labelled.is_file():
    assert list(model.config.id2label.items()) == list(enumerate(sorted(set(LABELS))))
  return oracle.outputs(model.eval(), TOKENS)["logits"]


@dataclasses.dataclass(frozen=True)
class Case:
  """A LoRA run on a base of transformers, exported both ways."""

  task: str
  base: Path
  run: Path
  adapter: Path
  merged: Path
  logits: Any  # of the run


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case[:2]))
def case(request, tmp_path_factory) -> Case:
  name, task, targets = request.param
  folder = tmp_path_factory.mktemp("case")
  base = make_base(name, folder / name)
  tune(task, base, folder / "run", {**LORA, "targets": targets})
  convert.export_adapter(str(folder / "run"), folder / "adapter")
  convert.export_checkpoint(str(folder / "run"), folder / "merged")
  return Case(task, base, folder / "run", folder / "adapter", folder / "merged", logits_here(folder / "run"))


def test_peft_computes_what_the_run_computes(case):
  np.testing.assert_allclose(logits_there(case.base, case.adapter, case.task), case.logits, atol=1e-4)


def test_the_merged_export_computes_the_same(case):
  model = AUTO[case.task].from_pretrained(case.merged, dtype=oracle.torch.float32).eval()
  np.testing.assert_allclose(oracle.outputs(model, TOKENS)["logits"], case.logits, atol=1e-4)


def test_the_adapter_is_read_again(case):
  np.testing.assert_allclose(logits_here(case.adapter), case.logits, atol=1e-5)
  assert load_pretrained(case.adapter).tasks == load_pretrained(case.run).tasks


def test_the_steps_changed_something(case):
  if case.task != "classify":
    assert np.abs(logits_here(case.base) - case.logits).max() > 0.1


def random_adapter(name: str, folder: Path, **settings) -> tuple[Path, np.ndarray]:
  """An adapter of random numbers that peft wrote beside its base, and the logits that peft computes with it."""
  base = make_base(name, folder / name)
  oracle.torch.manual_seed(3)
  config = peft.LoraConfig(init_lora_weights=False, **settings)
  model = peft.get_peft_model(oracle.load(name, base), config)
  with oracle.torch.no_grad():
    for key, parameter in model.named_parameters():
      if "modules_to_save" in key:
        parameter.add_(0.3 * oracle.torch.randn(parameter.shape))
  model.peft_config["default"].base_model_name_or_path = f"../{name}"
  model.save_pretrained(folder / "adapter")
  return folder / "adapter", oracle.outputs(model.eval(), TOKENS)["logits"]


@pytest.mark.parametrize(
  ("name", "settings"),
  [
    ("gpt2-lm", {"target_modules": "all-linear", "r": 4, "lora_alpha": 6, "use_rslora": True, "task_type": "CAUSAL_LM"}),
    ("gpt2-classifier", {"target_modules": ["c_attn"], "r": 2, "task_type": "SEQ_CLS"}),
    ("llama-untied", {"target_modules": ["q_proj", "down_proj", "lm_head"], "r": 4, "rank_pattern": {"q_proj": 2}}),
    ("llama-untied", {"target_modules": "all-linear", "alpha_pattern": {r"layers\.1\.mlp\.up_proj": 24}, "use_rslora": True}),
    ("llama-untied", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "layers_to_transform": [0, 2]}),
    ("bert-classifier", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
    ("bert-tagger", {"target_modules": ["query", "dense"], "task_type": "TOKEN_CLS"}),
    ("bert-span", {"target_modules": ["query", "value"], "task_type": "QUESTION_ANS"}),
    ("bert-mlm", {"target_modules": r".*\.(query|output\.dense)"}),
    ("modernbert-mlm", {"target_modules": "all-linear", "r": 3}),
    ("modernbert-mean", {"target_modules": ["Wqkv", "Wi"], "task_type": "SEQ_CLS", "modules_to_save": ["head"]}),
    ("qwen2", {"target_modules": ["k_proj", "o_proj"], "task_type": "CAUSAL_LM"}),
    ("gemma3", {"target_modules": ["q_proj", "gate_proj"], "task_type": "CAUSAL_LM"}),
  ],
)
def test_what_peft_wrote_computes_the_same_here(name, settings, tmp_path):
  adapter, expected = random_adapter(name, tmp_path, **settings)
  got = logits_here(adapter)
  assert np.abs(got - logits_here(tmp_path / name)).max() > 0.05
  np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-5)
