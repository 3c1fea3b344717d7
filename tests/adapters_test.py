"""Several adapters over one base: to switch gives each one's outputs exactly and compiles nothing; to merge adds them up."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from lm import adapters, convert, engine, train
from lm.config import ConfigError
from lm.interop import load_pretrained, save_pretrained
from lm.peft.head import Head
from tests.conftest import SIZES, TEXTS, make_run

ROOT = Path(__file__).parent.parent
LOUD = {"optimizer": {"name": "adamw", "learning_rate": 0.03}, "total_steps": 2, "eval_every": 2, "best_metric": ""}
OVER = LOUD | {"model": None, "tokenizer": ""}
TASKS = {"a": "classify", "b": "classify", "ia3": "classify", "pissa": "classify", "bitfit": "mlm", "prefix": "mlm"}
TASKS |= {"m1": "mlm", "m2": "mlm", "m3": "mlm"}
METHODS = {"a": "lora(rank=3)", "b": "lora(rank=3,adapter=b,dropout_rate=0.1)", "pissa": "lora(init=pissa,rank=2)"}
METHODS |= {"m1": "lora(rank=3)", "m2": "lora(rank=2,alpha=5,targets='.*(query|down)')", "m3": "lora(rank=3,alpha=9)"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A base, runs of many methods that started from it, and one of another base."""
  folder = tmp_path_factory.mktemp("runs")
  model = {"name": "bert-base-uncased", **SIZES, "vocab_size": 0}
  train.train(make_run("mlm", model=model, **LOUD), folder / "base")
  train.train(make_run("mlm", model=model, seed=1, **LOUD), folder / "other")
  save_pretrained(load_pretrained(folder / "base"), folder / "exported")
  for i, (name, task) in enumerate(TASKS.items()):
    settings = {"init_from": str(folder / "base"), "peft": METHODS.get(name, name), "seed": i}
    train.train(make_run(task, **OVER | settings), folder / name)
  return folder


@pytest.fixture(scope="module")
def model(runs):
  """The base with all of them, on one device."""
  found = lm.load(runs / "base", devices=jax.devices()[:1])
  for name in TASKS:
    found = found.add_adapter(name, runs / name)
  return found


@pytest.mark.parametrize("name", TASKS)
def test_an_adapter_in_use_is_its_run(name, runs, model):
  alone, used = lm.load(runs / name, devices=jax.devices()[:1]), model.use(name)
  np.testing.assert_allclose(used.embed(TEXTS[:3]), alone.embed(TEXTS[:3]), atol=1e-5)
  assert used.tasks == alone.tasks and used.max_len == alone.max_len
  if TASKS[name] == "classify":
    for ours, theirs in zip(used.predict(TEXTS[:3]), alone.predict(TEXTS[:3]), strict=True):
      assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-5)
  assert np.abs(used.embed(TEXTS[:3]) - model.use().embed(TEXTS[:3])).max() > 1e-4


def test_switching_back_and_forth_is_exact_and_compiles_nothing(runs, model):
  base = lm.load(runs / "base", devices=jax.devices()[:1]).embed(TEXTS[:3])
  first = {name: model.use(name).predict(TEXTS[:3]) for name in ("a", "b")}
  assert first["a"] != first["b"]
  compiled = engine._predict._cache_size()
  for name in ("b", "a", "b"):
    assert model.use(name).predict(TEXTS[:3]) == first[name]
    assert model.use("ia3").use(name).predict(TEXTS[:3]) == first[name]
  assert engine._predict._cache_size() <= compiled + 1  # of ia3
  model.use("ia3").predict(TEXTS[:3])
  compiled = engine._predict._cache_size()
  for name in ("a", "ia3", "b", "a"):
    model.use(name).predict(TEXTS[:3])
  assert engine._predict._cache_size() == compiled
  np.testing.assert_array_equal(model.use("a").use().embed(TEXTS[:3]), base)
  with pytest.raises(ConfigError, match="adapter='c': there is none; accepted are a, b"):
    model.use("c")


def products(adapter):
  """{module: what is added to its kernel}."""
  return {path: adapter.method.scale * (own["a"] @ own["b"]) for path, own in adapter.method.leaves(adapter.params).items()}


def test_merges_are_sums(model):
  shares, base = {"m1": 0.7, "m2": -0.3}, model.base
  parts = {name: products(model.adapters[name]) for name in shares}
  expected = {
    path: sum(shares[name] * own[path] for name, own in parts.items() if path in own) for path in parts["m1"] | parts["m2"]
  }
  merged = {how: adapters.merge(model.adapters, shares, base, how) for how in ("cat", "svd")}
  whole = adapters.merge(model.adapters, shares, base, "svd", rank=5)
  assert (merged["cat"].method.rank, merged["svd"].method.rank, whole.method.rank) == (5, 3, 5)
  for path, product in expected.items():
    np.testing.assert_allclose(products(merged["cat"])[path], product, atol=1e-5)
    np.testing.assert_allclose(products(whole)[path], product, atol=1e-5)
    error = np.linalg.norm(products(merged["svd"])[path] - product, axis=(-2, -1))
    singular = np.linalg.svd(product, compute_uv=False)
    np.testing.assert_allclose(error, np.linalg.norm(singular[..., 3:], axis=-1), atol=1e-4)  # Eckart and Young
  same = adapters.merge(model.adapters, {"m1": 1.0}, base, "linear")
  for path, product in parts["m1"].items():
    np.testing.assert_allclose(products(same)[path], product, atol=1e-5)


def test_heads_that_the_base_has_are_merged_as_differences_from_it(model):
  name, base = "head_mlm/bias", model.base
  below, rng = np.asarray(base.params[name]), np.random.default_rng(0)
  moved = {key: rng.normal(size=below.shape).astype(np.float32) for key in ("m1", "m2")}
  having = {key: model.adapters[key] for key in moved}
  assert not any(name in adapter.params for adapter in having.values())  # low ranks leave the vocabulary's head as it is
  having = {key: dataclasses.replace(own, params={**own.params, name: below + moved[key]}) for key, own in having.items()}
  merged = adapters.merge(having, {"m1": 0.7, "m2": -0.3}, base, "cat")
  np.testing.assert_allclose(merged.params[name], below + 0.7 * moved["m1"] - 0.3 * moved["m2"], atol=1e-6)


def test_a_merge_is_used_saved_and_read_again(runs, model, tmp_path):
  whole = model.merge_adapters({"m1": 0.7, "m3": 0.3}, "both", how="linear")
  expected = whole.use("both").embed(TEXTS[:3])
  whole.save_adapter("both", tmp_path / "both")
  np.testing.assert_allclose(lm.load(tmp_path / "both").embed(TEXTS[:3]), expected, atol=1e-5)
  again = lm.load(runs / "base").add_adapter("both", tmp_path / "both")
  np.testing.assert_allclose(again.use("both").embed(TEXTS[:3]), expected, atol=1e-5)
  command = [sys.executable, "-m", "tools.convert", "merge", f"{runs / 'm1'}:0.7", f"{runs / 'm3'}:0.3"]
  run = lambda *more: subprocess.run([*command, "--to", str(tmp_path / "out"), *more], capture_output=True, text=True, cwd=ROOT)
  done = run()
  assert done.returncode == 0, done.stderr
  assert "lora adapter of" in done.stdout and "rank 3" in done.stdout
  np.testing.assert_allclose(lm.load(tmp_path / "out").embed(TEXTS[:3]), expected, atol=1e-5)
  refused = run()
  assert refused.returncode == 2 and "holds something already" in refused.stderr


def test_an_exported_adapter_is_added_to_the_same_base_wherever_that_is(runs, model, tmp_path):
  convert.export_adapter(str(runs / "a"), tmp_path / "a")
  expected = model.use("a").predict(TEXTS[:3])
  for base in ("base", "exported"):  # the same parameters
    used = lm.load(runs / base, devices=jax.devices()[:1]).add_adapter("x", tmp_path / "a").use("x")
    for ours, theirs in zip(used.predict(TEXTS[:3]), expected, strict=True):
      assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-5)


def test_what_does_not_belong_together_is_one_line(runs, model, tmp_path):
  other, base = lm.load(runs / "other"), lm.load(runs / "base")
  convert.export_adapter(str(runs / "a"), tmp_path / "a")
  head = dataclasses.replace(model.adapters["a"], method=Head(), params={})
  headed = dataclasses.replace(model, adapters={"h": head})
  cases = [
    (lambda: other.add_adapter("a", runs / "a"), "was trained on '.*/base' of hash .*, not on '.*/other' of"),
    (lambda: other.add_adapter("a", tmp_path / "a"), "was trained on '.*/base' of hash .*, not on '.*/other' of"),
    (lambda: base.add_adapter("o", runs / "other"), "trained peft='full' from init_from=''; accepted are runs that trained"),
    (lambda: base.add_adapter("o", runs / "exported"), "is no adapter; accepted are workdirs"),
    (lambda: lm.load(runs / "prefix").add_adapter("a", runs / "a"), "peft='prefix': no plain model computes"),
    (lambda: model.merge_adapters({"m1": 1.0, "ia3": 1.0}, "x"), "adapter='ia3': is of peft='ia3'; accepted for a merge"),
    (lambda: model.merge_adapters({"m1": 1.0, "pissa": 1.0}, "x"), "adapter='pissa': changes .*kernel of the base itself"),
    (lambda: model.merge_adapters({"m1": 1.0, "m2": 1.0}, "x"), "how='linear': the ranks are 3, 2; accepted are equal"),
    (lambda: model.merge_adapters({"m1": 1.0, "a": 1.0}, "x"), "m1, a: have different heads"),
    (lambda: model.merge_adapters({"a": 1.0, "b": 1.0}, "x"), "a, b: each has head_classify/.* which the base lacks"),
    (lambda: model.merge_adapters({"m1": 1.0, "no": 1.0}, "x"), "adapter='no': there is none; accepted are a, b"),
    (lambda: model.merge_adapters({"m1": 1.0}, "x", how="ties"), "how='ties': accepted are linear, cat, svd"),
    (lambda: model.merge_adapters({"m1": 1.0}, "x", rank=3), "rank=3: accepted is 1 or more with how='svd'"),
    (lambda: model.merge_adapters({}, "x"), "adapters: none is given to merge"),
    (lambda: model.save_adapter("pissa", tmp_path / "p"), "changes .* of the base itself"),
    (lambda: model.save_adapter("bitfit", tmp_path / "p"), "changes .* of the base itself"),
    (
      lambda: headed.save_adapter("h", tmp_path / "p"),
      "peft='head': the peft library has no such method; accepted",
    ),
    (lambda: convert.merge_adapters([str(runs / "m1")], tmp_path / "p"), "expected PATH:WEIGHT"),
  ]
  for call, words in cases:
    with pytest.raises(ConfigError, match=words) as caught:
      call()
    assert "\n" not in str(caught.value)
  assert not (tmp_path / "p").exists()
