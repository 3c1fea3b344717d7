"""Prefix tuning of the peft library: the same keys and values give the same hidden states and logits of the tokens.

Tokens count their positions from the prefix's length on, as behind peft's cache. In local layers peft lets the window pass over
the prefix, which is seen everywhere here, so only rows within the window are compared. transformers' ModernBERT reads no cache:
peft's prefix does nothing there.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lm import tree
from lm.interop import load_pretrained
from lm.peft.prefix import Prefix
from tests.parity import oracle
from tests.parity.agreement import assert_agree, random_tokens
from tests.parity.families import VOCAB, WINDOW

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity
NUM = 5
CASES = [
  ("gpt2-lm", "CAUSAL_LM", 40),
  ("llama-untied", "CAUSAL_LM", 40),  # grouped keys, rotary positions
  ("qwen3", "CAUSAL_LM", 40),  # keys with a norm, which those of the prefix do not pass
  ("gemma2", "CAUSAL_LM", WINDOW - NUM),  # soft cap
  ("bert-classifier", "SEQ_CLS", 40),
  ("roberta-mlm", "FEATURE_EXTRACTION", 40),
]


@pytest.mark.parametrize(("name", "kind", "length"), CASES)
def test_the_same_prefix_computes_the_same(name, kind, length, tmp_path):
  oracle.make(name, tmp_path)
  tokens = random_tokens(np.random.default_rng(5), 2, length, vocab=VOCAB)
  there = peft.get_peft_model(oracle.load(name, tmp_path), peft.PrefixTuningConfig(num_virtual_tokens=NUM, task_type=kind))
  here, expected = load_pretrained(tmp_path), oracle.outputs(there.eval(), tokens)
  cfg, flat = here.model.cfg, tree.flatten(here.params)
  trained = there.prompt_encoder["default"].embedding.weight.detach().numpy()
  keys, values = trained.reshape(NUM, cfg.num_layers, 2, cfg.kv_heads, cfg.channels).transpose(2, 1, 0, 3, 4)
  leaves = {"key": jnp.asarray(keys), "value": jnp.asarray(values)}
  flat |= {f"backbone/blocks/attention/core/prefix/default/{part}": leaf for part, leaf in leaves.items()}
  model = dataclasses.replace(here.model, tuner=Prefix(num_prefix=NUM))
  got = dataclasses.replace(here, model=model, params=tree.unflatten(flat)).run(tokens)
  assert_agree(got, expected, np.ones_like(tokens))
  assert np.abs(here.run(tokens)["logits"] - expected["logits"]).max() > 0.05
