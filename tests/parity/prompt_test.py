"""Prompt tuning of the peft library: the same embeddings give the same hidden states of the tokens, and the same logits.

Positions count from the prompt's start in both. Of BERT, peft classifies what stands first, the prompt's first position; here
[CLS] is read, so of that classifier hidden states alone are compared. Where a model scales embeddings (Gemma), peft's prompt
stands behind the scale and ours before it, as the table does.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.interop import load_pretrained
from lm.peft.prompt import Prompt
from tests.parity import oracle
from tests.parity.agreement import assert_agree, random_tokens
from tests.parity.families import VOCAB

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity
NUM, LENGTH = 5, 40
CASES = [
  ("gpt2-lm", "CAUSAL_LM"),
  ("llama-untied", "CAUSAL_LM"),
  ("gemma2", "CAUSAL_LM"),  # windows and scaled embeddings
  ("llama-classifier", "SEQ_CLS"),
  ("bert-classifier", "SEQ_CLS"),
  ("bert-mlm", "FEATURE_EXTRACTION"),
  ("roberta-mlm", "FEATURE_EXTRACTION"),
  ("modernbert-mlm", "FEATURE_EXTRACTION"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_same_prompt_computes_the_same(name, kind, tmp_path):
  oracle.make(name, tmp_path)
  tokens = random_tokens(np.random.default_rng(5), 2, LENGTH, vocab=VOCAB)
  base = oracle.load(name, tmp_path)
  there = peft.get_peft_model(base, peft.PromptTuningConfig(num_virtual_tokens=NUM, task_type=kind))
  here, expected = load_pretrained(tmp_path), oracle.outputs(there.eval(), tokens)
  flat, prompt = tree.flatten(here.params), there.prompt_encoder["default"].embedding.weight.detach().numpy()
  scale = here.model.cfg.model_dim**0.5 if here.model.cfg.embed_scaled else 1.0
  flat["backbone/embed/prompt/default/embedding"] = jnp.asarray(prompt / scale)
  model = dataclasses.replace(here.model, tuner=Prompt(num_virtual_tokens=NUM))
  got = dataclasses.replace(here, model=model, params=tree.unflatten(flat)).run(tokens)
  expected["hidden_states"] = expected["hidden_states"][:, :, NUM:]
  if name == "bert-classifier":
    del expected["logits"]
  elif expected["logits"].ndim == 3:
    expected["logits"] = expected["logits"][:, NUM:]
  assert_agree(got, expected, np.ones_like(tokens))
  assert np.abs(here.run(tokens)["hidden_states"] - expected["hidden_states"]).max() > 0.1
