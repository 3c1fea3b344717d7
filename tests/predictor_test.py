"""A trained model in use: what it says is what its run measures, alone or among others, on one device or eight."""

import dataclasses
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from lm import config, engine, predictor, saved, train, tree
from lm.config import ConfigError
from lm.tasks.causal import Causal
from lm.tasks.prefix_lm import PrefixLm
from lm.tasks.ul2 import Ul2
from tests.conftest import LABELS, TEXTS, make_run

ROOT = Path(__file__).parent.parent
FAST = {"seq_len": 128, "optimizer": {"name": "adamw", "learning_rate": 1e-2}}


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  train.train(make_run("classify", total_steps=60, checkpoint_every=30, best_metric="", **FAST), folder / "classify")
  train.train(make_run("causal", total_steps=30, **FAST), folder / "causal")
  return folder


def load(workdirs, kind, devices=1, **settings):
  return predictor.load(workdirs / kind, devices=jax.devices()[:devices], **settings)


def numbers(values):
  """Every number in nested plain values, in order."""
  return np.asarray([leaf for leaf in jax.tree.leaves(values) if not isinstance(leaf, str)], np.float64)


def test_importing_lm_is_fast_and_brings_neither_jax_nor_numpy():
  code = (
    "import time; began = time.perf_counter(); import lm; spent = time.perf_counter() - began; import sys;"
    "assert not {'jax', 'numpy', 'lm.config'} & set(sys.modules);"
    "assert lm.config.Config and 'jax' not in sys.modules; assert lm.__version__; assert lm.load; print(spent)"
  )
  run = lambda: subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
  assert min(float(run().stdout) for _ in range(2)) < 0.2
  with pytest.raises(AttributeError, match="no attribute 'lod'"):
    lm.lod  # noqa: B018


def test_version_is_read_without_importing():
  from setuptools.config import setupcfg

  assert setupcfg.read_configuration(ROOT / "setup.cfg")["metadata"]["version"] == lm.__version__


def test_predictions_are_those_that_the_run_measured(workdirs):
  found = lm.load(workdirs / "classify").predict(TEXTS)
  summary = json.loads((workdirs / "classify" / "summary.json").read_text())["metrics"]
  right = [row["label"] == label for row, label in zip(found, LABELS, strict=True)]
  assert sum(right) / len(right) == pytest.approx(summary["eval/validation/accuracy"])
  loss = -np.mean([math.log(row["scores"][label]) for row, label in zip(found, LABELS, strict=True)])
  assert loss == pytest.approx(summary["eval/validation/loss"], abs=1e-5)
  for row in found:
    assert list(row["scores"]) == sorted(set(LABELS))
    assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert row["label"] == max(row["scores"], key=row["scores"].get)
  json.dumps(found)


def test_order_batch_and_company_do_not_change_a_prediction(workdirs):
  model = load(workdirs, "classify")
  texts = ["x" * size for size in (3, 100, 40, 1, 70, 0)]
  whole = model.predict(texts, batch_size=4)
  alone = [model.predict([text], batch_size=1)[0] for text in texts]
  np.testing.assert_allclose(numbers(whole), numbers(alone), atol=1e-5)
  rows = [{"text": text, "label": "not read", "id": 3} for text in texts]
  assert model.predict(rows, batch_size=4) == whole
  assert model.predict(reversed(texts), batch_size=4)[0]["label"] == whole[-1]["label"]
  assert model.predict([]) == []


@pytest.mark.parametrize("kind", ["classify", "causal"])
def test_one_device_and_eight_agree(kind, workdirs):
  def answers(devices):
    model = load(workdirs, kind, devices)
    values = model.predict(TEXTS[:11], batch_size=3) if kind == "classify" else model.score(TEXTS[:11], batch_size=3)
    return numbers(values), model.embed(TEXTS[:11], batch_size=3)

  for one, eight in zip(answers(1), answers(8), strict=True):
    np.testing.assert_allclose(one, eight, atol=1e-5, rtol=1e-5)
  placed = jax.tree.leaves(load(workdirs, kind, 8).params)
  assert all(len(leaf.sharding.device_set) == 8 for leaf in placed)


def test_few_row_lengths_are_computed(workdirs, monkeypatch):
  model, seen = load(workdirs, "classify"), set()
  compute = engine._predict

  def spy(objective, params, batch):
    seen.add(batch["inputs"]["tokens"].shape)
    return compute(objective, params, batch)

  monkeypatch.setattr(engine, "_predict", spy)
  model.predict(["x" * size for size in range(126)], batch_size=8)
  assert seen == {(8, length) for length in (16, 24, 32, 48, 64, 96, 128)}
  seen.clear()
  model.predict(["short"] * 3, batch_size=8)
  model.predict(["one"])
  assert seen == {(4, 16), (1, 16)}


def test_long_texts_are_cut_and_counted(workdirs):
  model = load(workdirs, "classify")
  for call in (model.predict, model.embed):
    with pytest.warns(UserWarning, match="2 of 3 texts are longer than the run's 128 tokens"):
      call(["x" * 300, "short", "y" * 127])
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    model.predict(["x" * 126])


def test_scores_are_those_that_the_run_measured(workdirs):
  model = load(workdirs, "causal")
  found = model.score(TEXTS)
  summary = json.loads((workdirs / "causal" / "summary.json").read_text())["metrics"]
  num_tokens = sum(row["num_tokens"] for row in found)
  assert num_tokens == sum(len(text) + 1 for text in TEXTS)  # bytes, and the end of each
  loss = -sum(row["log_likelihood"] for row in found) / num_tokens
  assert loss == pytest.approx(summary["eval/validation/loss"], rel=1e-5)
  assert loss / math.log(2) == pytest.approx(summary["eval/validation/bits_per_byte"], rel=1e-5)
  assert found[3]["bits_per_byte"] == pytest.approx(-found[3]["log_likelihood"] / math.log(2) / (len(TEXTS[3]) + 1))


def test_a_text_of_many_rows_is_scored_to_its_last_token(workdirs):
  model = load(workdirs, "causal")
  text = "The list sorts. " * 20
  whole = model.score([text, "a", ""])
  assert whole[2]["num_tokens"] == 1 and whole[2]["bits_per_byte"] == pytest.approx(-whole[2]["log_likelihood"] / math.log(2))
  assert [row["num_tokens"] for row in whole] == [len(text) + 1, 2, 1]
  assert whole[1] == pytest.approx(model.score(["a"])[0], rel=1e-5)
  assert 0.5 < whole[0]["bits_per_byte"] / model.score([text[:100]])[0]["bits_per_byte"] < 2


def test_embeddings_are_means_of_hidden_states_without_specials(workdirs):
  model = load(workdirs, "classify")
  found = model.embed([TEXTS[0], "", TEXTS[1]])
  assert found.shape == (3, 32)
  assert found.dtype == np.float32
  assert not found[1].any()
  tok = model.tokenizer
  tokens = np.asarray([[tok.cls_id, *tok.encode(TEXTS[0]), tok.sep_id]], np.int32)
  inputs = {
    "tokens": tokens,
    "segment_ids": np.ones_like(tokens),
    "positions": np.arange(tokens.size)[None],
    "row": np.zeros(1, int),
  }
  h_BTD = model.model.hidden(model.params, inputs).hidden_BTD
  np.testing.assert_allclose(found[0], np.asarray(h_BTD)[0, 1:-1].mean(0), atol=1e-5)
  assert model.embed([]).shape == (0, 32)


def test_generation_continues_prompts(workdirs):
  model = load(workdirs, "causal")
  greedy = model.generate(["The ", "The list"], max_new_tokens=8, temperature=0)
  assert greedy == [model.generate([prompt], max_new_tokens=8, temperature=0)[0] for prompt in ("The ", "The list")]
  assert all(isinstance(text, str) for text in greedy)
  sample = lambda seed: model.generate(["The "] * 2, max_new_tokens=8, temperature=2.0, top_k=0, top_p=1.0, seed=seed)
  assert sample(1) == sample(1)
  assert sample(1) != sample(2)


def test_a_compute_type_is_chosen_where_a_model_is_loaded(workdirs):
  whole, half = (load(workdirs, "classify", dtype=dtype) for dtype in ("auto", "bfloat16"))
  assert (whole.model.dtype, half.model.dtype) == ("float32", "bfloat16")
  difference = np.abs(numbers(whole.predict(TEXTS)) - numbers(half.predict(TEXTS))).max()
  assert 0 < difference < 0.05
  with pytest.raises(ConfigError, match="dtype='int8': accepted are auto, float32, bfloat16, float16"):
    load(workdirs, "classify", dtype="int8")


def test_a_prompt_is_a_prefix_where_all_tasks_train_that(workdirs, monkeypatch):
  model, seen = load(workdirs, "causal"), []
  monkeypatch.setattr(engine.generate, "generate", lambda *args: seen.append(args[4].prompt_is_prefix) or [[]])
  for tasks in ((Causal(),), (PrefixLm(),), (PrefixLm(), Ul2()), (PrefixLm(), Causal())):
    dataclasses.replace(model, tasks={str(task): task for task in tasks}).generate(["The list"])
  assert seen == [False, True, True, False]


def test_checkpoints_are_chosen_by_step(workdirs):
  early, late = (load(workdirs, "classify", checkpoint=which) for which in ("30", "last"))
  assert (early.step, late.step) == (30, 60)
  assert early.fingerprint() != late.fingerprint()
  assert early.predict(TEXTS[:1]) != late.predict(TEXTS[:1])
  best = json.loads((workdirs / "causal" / "checkpoints" / "best.json").read_text())
  assert load(workdirs, "causal", checkpoint="best").step == best["step"]


def test_what_is_not_possible_is_one_line(workdirs, tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  classify, causal = load(workdirs, "classify"), load(workdirs, "causal")
  for call, words in (
    (lambda: lm.load(tmp_path), "num_hidden_layers is not set"),
    (lambda: lm.load(tmp_path / "nothing"), "no such folder"),
    (lambda: load(workdirs, "classify", checkpoint=31), "there is no such step; .* has the steps 30, 60"),
    (lambda: classify.score(["a"]), "score: needs an autoregressive run .*classify"),
    (lambda: classify.generate(["a"]), "generate: needs an autoregressive run"),
    (lambda: causal.predict(["a"]), "none of the run's tasks predicts .*causal"),
    (lambda: causal.generate(["a"], temperature=-1), "temperature=-1"),
    (lambda: classify.predict(["a"], task="other"), "task='other': accepted are classify"),
    (lambda: classify.predict("one text"), "expected a list of texts, got 'one text'"),
    (lambda: classify.predict(["a", 3]), r"texts\[1\]=3: expected a text"),
    (lambda: classify.predict([("a", "b")]), r"texts\[0\]: is a pair of texts, expected one"),
    (lambda: classify.predict([{"body": "a"}]), r"texts\[0\]: expected texts in text; the row has body"),
    (lambda: classify.embed([("a", "b")]), r"texts\[0\]: is a pair of texts"),
    (lambda: classify.predict(["a"], batch_size=0), "batch_size=0"),
  ):
    with pytest.raises(ValueError, match=words) as error:
      call()
    assert "\n" not in str(error.value)


def test_a_run_of_two_tasks_is_asked_by_name(tmp_path):
  data = {"name": "memory", "texts": TEXTS, "text_labels": LABELS}
  streams = {name: {"task": {"name": "classify", "labels": labels}, "data": data} for name, labels in (("kind", ()),)}
  streams["docs"] = {"task": "mlm", "data": {"name": "memory", "texts": TEXTS}}
  train.train(make_run("mlm", task=None, data=None, streams=streams, total_steps=1), tmp_path)
  model = lm.load(tmp_path)
  assert model.predict(TEXTS[:2]) == model.predict(TEXTS[:2], task="kind")
  with pytest.raises(ConfigError, match="task='docs': accepted are kind"):
    model.predict(TEXTS[:2], task="docs")


@pytest.mark.parametrize("based", [True, False])
def test_a_peft_run_is_whole_with_and_without_a_base(based, tmp_path):
  settings = {"peft": "lora", "total_steps": 4}
  if based:
    train.train(make_run("mlm", total_steps=2, checkpoint_every=1), tmp_path / "base")
    settings |= {"model": None, "tokenizer": "", "init_from": str(tmp_path / "base")}
  summary = train.train(make_run("classify", **settings), tmp_path / "tuned")
  found = lm.load(tmp_path / "tuned").predict(TEXTS)
  loss = -np.mean([math.log(row["scores"][label]) for row, label in zip(found, LABELS, strict=True)])
  assert loss == pytest.approx(summary["metrics"]["eval/validation/loss"], abs=1e-5)
  _, flat = saved.load_params(tmp_path / "tuned")
  assert not [name for name in flat if "/lora/" in name]
  assert tree.count(tree.unflatten(flat)) < summary["params"]["total"]


def test_loading_needs_neither_the_data_nor_the_original_tokenizer(tmp_path):
  from lm.data import tokenizer

  tokenizer.train(["one two three four five six seven " * 20], str(tmp_path / "t.model"), vocab_size=280)
  (tmp_path / "a.txt").write_text("one two three\n" * 20)
  files = dict.fromkeys(("path", "validation"), str(tmp_path / "a.txt"))
  train.train(make_run(data={"name": "text", **files}, tokenizer=str(tmp_path / "t.model"), total_steps=1), tmp_path / "run")
  (tmp_path / "t.model").unlink()
  (tmp_path / "a.txt").unlink()
  assert lm.load(tmp_path / "run").score(["one two"])[0]["num_tokens"] > 0
  assert config is lm.config
