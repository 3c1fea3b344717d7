"""Workdirs of runs over quantised kernels: what they keep, how they go on, how they are read and exported."""

import json
import math

import jax
import numpy as np
import pytest

import lm
from lm import build, checkpoint, convert, record, saved, train, tree
from lm.quantizers.quantizer import PACKED
from tests.conftest import SIZES, TEXTS, make_run
from tests.quantizers.run_test import DENSE, INT8, LORA, NF4


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
  """Workdirs of a causal and a masked model to start from."""
  folder = tmp_path_factory.mktemp("bases")
  for kind, name in (("mlm", "bert-tiny"), ("causal", "gpt2-tiny")):
    train.train(make_run(kind, total_steps=2, model={"name": name, **SIZES, "init_stddev": 0.2}), folder / kind)
  return folder


def based(kind, base, **settings):
  start = {"model": None, "tokenizer": "", "init_from": str(base), "peft": LORA, "quantizer": NF4, "total_steps": 4}
  return make_run(kind, optimizer={"name": "adamw", "learning_rate": 1e-2}, **start | settings)


def test_it_resumes_bit_by_bit_from_a_checkpoint_of_what_trains(bases, tmp_path):
  settings = {"checkpoint_every": 2}
  whole = train.train(based("classify", bases / "mlm", **settings), tmp_path / "whole")
  stopped = iter([False, False, True])
  train.train(based("classify", bases / "mlm", **settings), tmp_path / "parts", stop=lambda: next(stopped, True))
  again = train.train(based("classify", bases / "mlm", **settings), tmp_path / "parts")
  for name in ("loss_sha256", "params_sha256"):
    assert again[name] == whole[name], name
  _, kept = checkpoint.load_params(tmp_path / "whole" / "checkpoints")
  assert all(name.startswith("head_") or "/lora/" in name for name in tree.flatten(kept))
  manifest = record.read_manifest(tmp_path / "whole")
  assert manifest["base"]["sha256"] == record.read_summary(bases / "mlm")["params_sha256"]
  with pytest.raises(ValueError, match="quantizer.name: 'nf4' -> 'int8'|quantizer"):
    train.train(based("classify", bases / "mlm", quantizer=INT8, **settings), tmp_path / "parts")


@pytest.mark.parametrize(("method", "has_base"), [(LORA, True), ("prefix(num_prefix=3)", True), (LORA, False)])
def test_what_it_trained_is_read_back_as_what_it_was(method, has_base, bases, tmp_path):
  run = (
    based("classify", bases / "mlm", peft=method) if has_base else make_run("classify", peft=method, quantizer=NF4, model=DENSE)
  )
  summary = train.train(run, tmp_path / "run")
  path = tmp_path / "run"
  found = lm.load(path, devices=jax.devices()[:1]).predict(TEXTS)
  loss = -np.mean([math.log(row["scores"][text.split()[1]]) for row, text in zip(found, TEXTS, strict=True)])
  assert loss == pytest.approx(summary["metrics"]["eval/validation/loss"], abs=2e-5)
  again = build.load_run(path, jax.devices()[:1])
  start = again.init_state()
  state = checkpoint.restore(
    path / "checkpoints" / str(summary["step"]),
    again.program.abstract_sharded if again.saves_frozen else again.program.abstract_sharded.replace(frozen=start.frozen),
    again.saves_frozen,
  )
  expected = again.program.spec.model.quantizer.unpacked(tree.flatten(tree.merge(state.params, state.frozen)))
  _, flat = saved.load_unmerged(path)
  for name, x in expected.items():
    np.testing.assert_array_equal(flat[name], x, err_msg=name)
  assert not [name for name in flat if f"/{PACKED}/" in name]


def test_its_adapter_is_a_lora_of_the_base_as_it_was_before_rounding(bases, tmp_path):
  targets = "lora(rank=2,alpha=6.0,targets=.*(query|down))"
  model = {"name": "llama-3.2-1b", **SIZES, "num_kv_heads": 2, "head_dim": 8, "vocab_size": 0, "rope_original_len": 32}
  train.train(make_run("causal", model=model, total_steps=1), tmp_path / "base")
  train.train(based("causal", tmp_path / "base", peft=targets), tmp_path / "run")
  convert.export_adapter(str(tmp_path / "run"), tmp_path / "adapter")
  assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
  (_, base), (_, merged), (_, read) = (saved.load_params(tmp_path / name) for name in ("base", "run", "adapter"))
  _, flat = saved.load_unmerged(tmp_path / "run")
  name = "backbone/blocks/ffn/down"
  product = 3 * flat[f"{name}/lora/default/a"] @ flat[f"{name}/lora/default/b"]
  np.testing.assert_allclose(read[f"{name}/kernel"], base[f"{name}/kernel"] + product, atol=1e-6)
  np.testing.assert_allclose(merged[f"{name}/kernel"], flat[f"{name}/kernel"] + product, atol=1e-6)
  assert np.abs(flat[f"{name}/kernel"] - base[f"{name}/kernel"]).max() > 1e-4
