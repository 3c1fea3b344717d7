"""LoRA adapters and the peft library: what a run leaves is read there, what peft writes is read here, with equal logits."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm import convert, train
from lm.interop import load_pretrained
from tests.conftest import make_run
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


def tune(task: str, base: Path, workdir: Path, **lora) -> None:
  """Three steps large enough to be seen."""
  pooling = {"pooling": "mean"} if task == "classify" and "modernbert" in base.name else {}
  settings = {"model": None, "tokenizer": "", "init_from": str(base), "total_steps": 3, "best_metric": ""}
  settings |= {"optimizer": {"name": "adamw", "learning_rate": 0.03}, "peft": {"name": "lora", "rank": 3, "alpha": 5.0, **lora}}
  train.train(make_run(task, task={"name": task, **pooling}, **settings), workdir)


def logits_here(folder: Path) -> np.ndarray:
  return load_pretrained(folder).run(TOKENS)["logits"]


def logits_there(base: Path, adapter: Path, task: str) -> np.ndarray:
  """Of peft, which must miss no tensor and find none too many."""
  head = json.loads((adapter / "head.json").read_text()) if (adapter / "head.json").is_file() else {}
  model = AUTO[task].from_pretrained(base, dtype=oracle.torch.float32, **head)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model = peft.PeftModel.from_pretrained(model, adapter)
  if head:
    assert {int(i): label for i, label in head["id2label"].items()} == model.config.id2label
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
  tune(task, base, folder / "run", targets=targets)
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
