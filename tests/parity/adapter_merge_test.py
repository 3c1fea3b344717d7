"""Weighted sums of adapters beside the library peft's `add_weighted_adapter`: equal logits here, and there once saved.

All without rsLoRA: of such adapters peft scales the sum by the square root of its rank once more.
"""

import dataclasses
import warnings

import numpy as np
import pytest

from lm import adapters, saved, tree
from lm.interop import load_pretrained
from tests.parity import oracle
from tests.parity.adapter_test import TOKENS, make_base

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity
torch = oracle.torch
SHARES = {"first": 0.7, "second": -0.4}
CASES = {"llama-untied": (["q_proj", "down_proj"], ["q_proj", "v_proj"]), "bert-mlm": (["query"], ["query", "value"])}


@pytest.mark.parametrize("name", CASES)
def test_merges_compute_what_those_of_peft_compute(name, tmp_path):
  base = make_base(name, tmp_path / name)
  pairs = zip(CASES[name], (5, 4), strict=True)
  configs = [peft.LoraConfig(target_modules=modules, r=3, lora_alpha=alpha) for modules, alpha in pairs]
  torch.manual_seed(5)
  there = peft.get_peft_model(oracle.load(name, base), configs[0], adapter_name="first")
  there.add_adapter("second", configs[1])
  with torch.no_grad():
    for key, parameter in there.named_parameters():
      if "lora_" in key:
        parameter.copy_(0.2 * torch.randn(parameter.shape))
  there.save_pretrained(tmp_path / "adapters")
  model, params = saved.load_model(base)
  here = adapters.Base(base, str(base), dataclasses.replace(model, dtype="float32"), tree.flatten(params))
  found = {key: adapters.load(str(tmp_path / "adapters" / key), here) for key in SHARES}
  plain = load_pretrained(base)
  for how, options in (("linear", {}), ("cat", {}), ("svd", {}), ("svd", {"rank": 2})):
    label = f"{how}{options.get('rank', '')}"
    more = {"svd_rank": options["rank"]} if options else {}
    there.add_weighted_adapter(list(SHARES), list(SHARES.values()), label, combination_type=how, **more)
    there.set_adapter(label)
    expected = oracle.outputs(there.eval(), TOKENS)["logits"]
    merged = adapters.merge(found, SHARES, here, how, **options)
    whole = dataclasses.replace(plain, model=merged.around(here.model), params=tree.unflatten({**here.params, **merged.params}))
    np.testing.assert_allclose(whole.run(TOKENS)["logits"], expected, atol=1e-4, rtol=1e-5, err_msg=label)
    assert np.abs(expected - plain.run(TOKENS)["logits"]).max() > 0.05
    adapters.save(merged, here, tmp_path / label)
    with warnings.catch_warnings():
      warnings.simplefilter("error", UserWarning)
      again = peft.PeftModel.from_pretrained(oracle.load(name, base), tmp_path / label)
    np.testing.assert_allclose(oracle.outputs(again.eval(), TOKENS)["logits"], expected, atol=1e-4, rtol=1e-5, err_msg=label)
