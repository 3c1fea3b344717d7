"""LoRA adapters in peft's format without peft: a run's own logits come back; what has no counterpart is one clear line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm
from lm import convert, saved, train
from lm.config import ConfigError
from lm.interop import adapter, load_pretrained, save_pretrained
from tests.conftest import SIZES, TEXTS, make_run

ROOT = Path(__file__).parent.parent.parent
TOKENS = np.random.default_rng(0).integers(10, 250, (2, 20))
LOUD = {"optimizer": {"name": "adamw", "learning_rate": 0.03}, "total_steps": 2, "eval_every": 2}
TUNED = LOUD | {"model": None, "tokenizer": "", "peft": "lora(rank=3,alpha=5)"}


def logits(folder):
  return load_pretrained(folder).run(TOKENS)["logits"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A base of ours, the same as Hugging Face's, a classifier tuned on either, and their adapters."""
  folder = tmp_path_factory.mktemp("runs")
  model = {"name": "bert-base-uncased", **SIZES, "vocab_size": 0}
  train.train(make_run("mlm", model=model, **LOUD), folder / "base")
  save_pretrained(load_pretrained(folder / "base"), folder / "exported")
  for base in ("base", "exported"):
    train.train(make_run("classify", init_from=str(folder / base), **TUNED), folder / f"tuned-{base}")
    convert.export_adapter(str(folder / f"tuned-{base}"), folder / f"adapter-{base}")
  return folder


@pytest.fixture
def change(runs, tmp_path):
  """change(settings, tensors): a copy of an adapter with other settings, and tensors added, replaced or (None) taken away."""

  def copy(settings, tensors=None):
    folder = tmp_path / "adapter"
    shutil.copytree(runs / "adapter-exported", folder)
    kept = json.loads((folder / adapter.CONFIG).read_text())
    (folder / adapter.CONFIG).write_text(json.dumps(kept | settings))
    found = load_file(folder / adapter.FILE) | (tensors or {})
    save_file({name: tensor for name, tensor in found.items() if tensor is not None}, folder / adapter.FILE)
    return folder

  return copy


@pytest.mark.parametrize("base", ["base", "exported"])
def test_an_adapter_gives_the_logits_of_its_run(base, runs):
  run, exported = load_pretrained(runs / f"tuned-{base}"), load_pretrained(runs / f"adapter-{base}")
  np.testing.assert_allclose(exported.run(TOKENS)["logits"], run.run(TOKENS)["logits"], atol=1e-5)
  assert exported.tasks == run.tasks
  assert exported.token_ids == run.token_ids
  ours, theirs = (lm.load(runs / f"{kind}-{base}").predict(TEXTS[:3]) for kind in ("tuned", "adapter"))
  assert [row["label"] for row in ours] == [row["label"] for row in theirs]


def test_it_names_modules_as_short_as_no_other_ends_alike(runs):
  settings = json.loads((runs / "adapter-exported" / adapter.CONFIG).read_text())
  assert settings["target_modules"] == ["query", "value"]
  assert settings["modules_to_save"] == ["classifier", "pooler"]
  assert (settings["r"], settings["lora_alpha"], settings["task_type"]) == (3, 5, "SEQ_CLS")
  assert settings["base_model_name_or_path"] == str((runs / "exported").resolve())
  found = load_file(runs / "adapter-exported" / adapter.FILE)
  name = "base_model.model.bert.encoder.layer.1.attention.self.value"
  assert found[f"{name}.lora_A.weight"].shape == (3, 32)
  assert found[f"{name}.lora_B.weight"].shape == (32, 3)


def test_parts_of_a_fused_kernel_are_one_adapter(tmp_path):
  model = {"name": "gpt2", **SIZES, "vocab_size": 0}
  train.train(make_run("causal", model=model, **LOUD), tmp_path / "base")
  peft = {"name": "lora", "rank": 2, "alpha": 6.0, "targets": ".*(query|value|down)"}
  train.train(make_run("causal", **TUNED | {"init_from": str(tmp_path / "base"), "peft": peft}), tmp_path / "run")
  convert.export_adapter(str(tmp_path / "run"), tmp_path / "adapter")
  found = load_file(tmp_path / "adapter" / adapter.FILE)
  a, b = (found[f"base_model.model.transformer.h.1.attn.c_attn.lora_{part}.weight"] for part in "AB")
  assert (a.shape, b.shape) == ((4, 32), (96, 4))
  where = np.zeros((96, 4), bool)
  where[:32, :2] = where[64:, 2:] = True  # of query and value, not of key
  assert ((b != 0) == where).all()
  settings = json.loads((tmp_path / "adapter" / adapter.CONFIG).read_text())
  assert settings["fan_in_fan_out"]
  assert sorted(settings["target_modules"]) == ["c_attn", "mlp.c_proj"]
  assert (settings["r"], settings["lora_alpha"]) == (2, 6)
  assert list(settings["rank_pattern"].values()) == [4]
  assert list(settings["alpha_pattern"].values()) == [12]
  np.testing.assert_allclose(logits(tmp_path / "adapter"), logits(tmp_path / "run"), atol=1e-5)


def test_a_run_starts_from_an_adapter(runs, tmp_path):
  settings = TUNED | {"init_from": str(runs / "adapter-exported"), "peft": "head"}
  train.train(make_run("classify", **settings), tmp_path / "next")
  (_, before), (_, after) = saved.load_params(runs / "tuned-exported"), saved.load_params(tmp_path / "next")
  name = "backbone/blocks/attention/query/kernel"
  np.testing.assert_allclose(after[name], before[name], atol=1e-6)
  assert (after["head_classify/out/kernel"] != before["head_classify/out/kernel"]).any()


def test_an_adapter_is_imported_as_its_base_with_changed_tensors(runs, tmp_path):
  said = convert.import_checkpoint(str(runs / "adapter-exported"), tmp_path / "work")
  assert said.endswith("heads: classify")
  np.testing.assert_allclose(logits(tmp_path / "work"), logits(runs / "tuned-exported"), atol=1e-5)


def test_an_adapter_stands_on_another_one(runs, tmp_path):
  settings = TUNED | {"init_from": str(runs / "adapter-exported"), "peft": {"name": "lora", "targets": ".*ffn/down"}}
  train.train(make_run("classify", **settings), tmp_path / "run")
  convert.export_adapter(str(tmp_path / "run"), tmp_path / "adapter")
  targets = json.loads((tmp_path / "adapter" / adapter.CONFIG).read_text())["target_modules"]
  assert targets == [f"encoder.layer.{i}.output.dense" for i in range(2)]  # attention.output.dense ends alike
  np.testing.assert_allclose(logits(tmp_path / "adapter"), logits(tmp_path / "run"), atol=1e-5)
  assert np.abs(logits(tmp_path / "adapter") - logits(runs / "adapter-exported")).max() > 1e-2


def test_the_base_is_found_beside_the_adapter(change, tmp_path, runs):
  folder = change({"base_model_name_or_path": "../base"})
  shutil.copytree(runs / "exported", tmp_path / "base")
  np.testing.assert_allclose(logits(folder), logits(runs / "tuned-exported"), atol=1e-5)


def test_scales(change, runs):
  half = change({"lora_alpha": 2.5, "use_rslora": False})
  expected = load_pretrained(runs / "exported").params, load_pretrained(runs / "tuned-exported").params
  kernel = lambda params: params["backbone"]["blocks"]["attention"]["query"]["kernel"]
  base, tuned = map(kernel, expected)
  np.testing.assert_allclose(kernel(load_pretrained(half).params), (base + tuned) / 2, atol=1e-6)
  shutil.rmtree(half)
  again = change({"lora_alpha": 1, "alpha_pattern": {"attention.self.query": 5 / 3**0.5}, "use_rslora": True})
  np.testing.assert_allclose(kernel(load_pretrained(again).params), tuned, atol=1e-6)


def test_labels_without_ours_are_numbered(change):
  folder = change({})
  (folder / adapter.HEAD).unlink()
  assert load_pretrained(folder).labels == tuple(f"LABEL_{i}" for i in range(5))


VALUE = "base_model.model.bert.encoder.layer.1.attention.self.value"
FLOATS = np.ones((3, 32), np.float32)


@pytest.mark.parametrize(
  ("settings", "tensors", "complaint"),
  [
    ({"peft_type": "LOHA"}, {}, "config.json: peft_type='LOHA' has no counterpart here; accepted are 'ADALORA', 'IA3', 'LORA'"),
    ({"use_dora": True}, {}, r"lora_A.weight \[3, 32\] and lora_B.weight \[32, 3\] and lora_magnitude_vector None of .*query"),
    ({"use_qalora": True}, {}, "use_qalora=True has no counterpart here; accepted are false and unset"),
    ({"bias": "all"}, {}, "bias='all' has no counterpart here; accepted are 'none'"),
    ({"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa' has no counterpart"),
    ({"layer_replication": [[0, 2]]}, {}, "layer_replication="),
    ({"base_model_name_or_path": None}, {}, "base_model_name_or_path is not set"),
    ({"base_model_name_or_path": "./nowhere"}, {}, "base_model_name_or_path=./nowhere: no such folder"),
    ({"base_model_name_or_path": "."}, {}, "is the adapter itself"),
    ({}, {"base_model.model.bert.embeddings.LayerNorm.weight": np.ones(32, np.float32)}, "embeddings.LayerNorm.weight has no"),
    ({}, {"base_model.model.bert.embeddings.word_embeddings.weight": FLOATS}, "word_embeddings.weight has no counterpart"),
    ({}, {f"{VALUE}.lora_magnitude_vector": np.ones(32, np.float32)}, "value.lora_magnitude_vector has no counterpart"),
    ({}, {f"{VALUE}.lora_B.weight": None}, r"lora_A.weight \[3, 32\] and lora_B.weight None of .*value; expected are floats"),
    (
      {},
      {f"{VALUE}.lora_B.weight": FLOATS},
      r"lora_B.weight \[3, 32\] of .*; expected are floats \[rank, 32\] and",
    ),
    ({}, {f"{VALUE}.lora_A.weight": FLOATS.astype(int)}, "lora_A.weight None and lora_B"),
    ({}, {"base_model.model.bert.pool.lora_A.weight": FLOATS}, "lora_A.weight of bert.pool, which is no linear module"),
    ({}, {"base_model.model.bert.pooler.dense.weight": None}, "missing: pooler.dense.weight"),
  ],
)
def test_what_has_no_counterpart_is_refused_in_one_line(settings, tensors, complaint, change):
  folder = change(settings, tensors)
  with pytest.raises(ConfigError, match=complaint) as caught:
    load_pretrained(folder)
  assert "\n" not in str(caught.value)


def test_a_pickle_or_no_json_is_refused(change):
  folder = change({})
  (folder / adapter.FILE).rename(folder / "adapter_model.bin")
  with pytest.raises(ConfigError, match=r"adapter_model.bin but no adapter_model.safetensors; a pickle"):
    load_pretrained(folder)
  for text, words in (("{", "not JSON"), ("[1]", "expected a JSON object")):
    (folder / adapter.CONFIG).write_text(text)
    with pytest.raises(ConfigError, match=words):
      load_pretrained(folder)


def test_runs_without_an_adapter_are_refused(runs, tmp_path):
  with pytest.raises(
    ConfigError,
    match="trained peft='full'.*accepted are runs of adalora, dora, ia3, lora, prefix, prompt that started from a base",
  ):
    convert.export_adapter(str(runs / "base"), tmp_path / "a")
  with pytest.raises(ConfigError, match="is not the workdir of a run"):
    convert.export_adapter(str(runs / "exported"), tmp_path / "b")
  with pytest.raises(ConfigError, match="holds something already"):
    convert.export_adapter(str(runs / "tuned-base"), runs / "exported")


def test_adapters_of_experts_are_refused(tmp_path):
  model = {"name": "mixtral-8x7b", **SIZES, "num_kv_heads": 2, "num_experts": 4, "vocab_size": 0, "head_dim": 0}
  train.train(make_run("causal", model=model, **LOUD), tmp_path / "base")
  peft = {"name": "lora", "targets": ".*(query|ffn/up)"}
  train.train(make_run("causal", **TUNED | {"init_from": str(tmp_path / "base"), "peft": peft}), tmp_path / "run")
  with pytest.raises(ConfigError, match="backbone/blocks/ffn/up; an adapter of experts has no counterpart in peft"):
    convert.export_adapter(str(tmp_path / "run"), tmp_path / "adapter")
  convert.export_checkpoint(str(tmp_path / "run"), tmp_path / "merged")
  np.testing.assert_allclose(logits(tmp_path / "merged"), logits(tmp_path / "run"), atol=1e-5)


def test_the_command(runs, tmp_path):
  command = [sys.executable, "-m", "tools.convert", "export", "--from", str(runs / "tuned-base"), "--adapter"]
  run = lambda *more: subprocess.run([*command, *more], capture_output=True, text=True, cwd=ROOT)
  done = run("--to", str(tmp_path / "adapter"))
  assert done.returncode == 0, done.stderr
  assert "lora adapter of" in done.stdout and "export the base too" in done.stdout
  card = (tmp_path / "adapter" / "README.md").read_text()
  assert "library_name: peft" in card and "| validation/accuracy |" in card
  refused = run("--to", str(tmp_path / "half"), "--dtype", "float16")
  assert (refused.returncode, refused.stderr) == (2, "error: --dtype=float16: an adapter is written in float32\n")
