"""The recipes: each loads, has a published size, a data set and a tokenizer, and fits the slice that it is sized for."""

import dataclasses
import importlib
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import minilm
from experiments.tpu_preflight.cases import CASES
from lm import build, config, duration, plug, sharding, train, tree
from lm.config import ConfigError
from lm.models.model import Model
from tests.conftest import CACHE, TEXTS, shrunk

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if "\nVARIANTS = " in path.read_text())
ARGUMENTS = [(name, arg) for name in RECIPES for arg in importlib.import_module(f"configs.{name}").VARIANTS]
MLM_HEAD = 768 * 768 + 768 + 2 * 768  # transform and norm of BERT; the bias of the vocabulary comes on top
# Scalars with the head that a recipe trains, from the published tensors' shapes, by preset.
PUBLISHED = {
  "bert-base-uncased": 108_891_648 + MLM_HEAD + 30_522,  # BertForMaskedLM: "110 M"
  "modernbert-base": 149_014_272 + 768 * 768 + 768 + 50_368,  # ModernBertForMaskedLM: no biases but the vocabulary's
  "gpt2": 124_439_808 + (50_304 - 50_257) * 768,  # rows of the table that no piece uses
  "llama-3.2-1b": 1_235_814_400,
  "tinyllama-1.1b": 1_100_048_384,
  "llama-2-7b": 6_738_415_616,
  "llama-3-8b": 8_030_261_248,
  "llama-3-70b": 70_553_706_496,
  "mixtral-8x7b": 46_702_792_704,
}


def load(name: str, arg: str = "", **overrides) -> config.Config:
  return config.load(str(ROOT / "configs" / f"{name}.py") + (arg and f":{arg}"), overrides)


def make_model(cfg: config.Config) -> Model:
  tasks = [plug.make("task", stream.task) for stream in cfg.all_streams.values()]
  heads = tuple(dict(head for task in tasks for head in task.heads).items())
  return Model(plug.make("model", cfg.model), heads, remat=cfg.remat)


def make_mesh(cfg: config.Config, num_devices: int) -> jax.sharding.AbstractMesh:
  """The config's mesh on so many devices, which are not there."""
  sizes = dataclasses.asdict(cfg.mesh)
  known = math.prod(size for size in sizes.values() if size != -1)
  filled = {axis: num_devices // known if size == -1 else size for axis, size in sizes.items()}
  assert math.prod(filled.values()) == num_devices
  return jax.sharding.AbstractMesh(tuple(filled.values()), tuple(filled))


def test_every_recipe_and_argument_is_a_case_of_the_preflight():
  assert {case.config for case in CASES} == {f"configs/{name}.py:{arg}" for name, arg in ARGUMENTS}
  assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(("name", "arg"), ARGUMENTS)
def test_a_recipe_has_the_published_size_and_takes_its_rows(name, arg):
  cfg = load(name, arg)
  model = make_model(cfg)
  assert tree.count(model.abstract) == PUBLISHED[cfg.model.name]
  assert cfg.seq_len <= model.cfg.max_len
  assert all(plug.make("task", stream.task).causal == model.cfg.causal for stream in cfg.all_streams.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_rows_of_a_step_divide_over_the_slice_within_the_limit_of_a_device(case):
  file, _, arg = case.config.partition(":")
  cfg = load(Path(file).stem, arg)
  rows, left = divmod(cfg.batch_size, sharding.num_batch_shards(make_mesh(cfg, case.num_devices)))
  assert left == 0
  most = cfg.tokens_per_device // cfg.seq_len
  assert most >= 1
  parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= most)
  assert parts == 1 or rows // parts > most // 2  # else the limit says nothing


@pytest.mark.parametrize(("name", "arg"), ARGUMENTS)
def test_data_optimizer_and_budget_are_what_their_plugins_take(name, arg):
  cfg = load(name, arg)
  for stream in cfg.all_streams.values():
    for split in ("train", "validation"):
      source = plug.make("data", stream.data, split=split)
      assert source.held_out  # the recipe is judged by documents that it does not train on
  steps = duration.steps(cfg.total_steps, "config.total_steps", batch_size=cfg.batch_size, seq_len=cfg.seq_len)
  optimizer = plug.make("optimizer", cfg.optimizer)
  rates = [float(optimizer.make_schedule(steps)(step)) for step in np.linspace(0, steps - 1, 9).astype(int)]
  assert max(rates) <= optimizer.learning_rate * (1 + 1e-6)
  assert max(rates) > optimizer.learning_rate * 0.8
  assert duration.steps(cfg.checkpoint_every, "config.checkpoint_every", total_steps=steps) <= steps
  assert cfg.tokenizer.startswith("runs/tokenizers/")
  assert f"--local-dir {cfg.tokenizer}" in (ROOT / "configs" / f"{name}.py").read_text()


def test_token_budgets_are_those_of_their_sources():
  def tokens(name, arg=""):
    cfg = load(name, arg)
    units = {"batch_size": cfg.batch_size, "seq_len": cfg.seq_len}
    return duration.steps(cfg.total_steps, "config.total_steps", **units) * cfg.batch_size * cfg.seq_len

  assert tokens("bert_base") == 1_000_000 * 256 * 512
  assert tokens("gpt2_small") == pytest.approx(10e9, rel=1e-3)
  assert tokens("gpt2_small", "owt") == pytest.approx(600_000 * 491_520, rel=1e-3)
  assert tokens("llama2_7b") == pytest.approx(2e12, rel=1e-3)
  assert tokens("llama3_8b") == pytest.approx(15e12, rel=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_argument_is_one_line_that_lists_the_known_ones(name):
  with pytest.raises(ConfigError) as error:
    load(name, "v9_1x1")
  variants = importlib.import_module(f"configs.{name}").VARIANTS
  assert "v9_1x1: accepted arguments are " + ", ".join(variants) in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", RECIPES)
def test_no_argument_is_the_first_one_and_loads_in_no_time(name):
  first = next(iter(importlib.import_module(f"configs.{name}").VARIANTS))
  began = time.perf_counter()
  cfg = load(name)
  assert time.perf_counter() - began < 0.1
  assert cfg == load(name, first)


def test_lora_trains_products_beside_every_linear_layer_and_no_head():
  cfg = load("llama3_8b", "lora")
  model = make_model(cfg)
  peft = plug.make("peft", cfg.peft)
  abstract = tree.flatten(jax.eval_shape(lambda rng: peft.attach(model.init(rng), rng), jax.random.key(0)))
  trains = {name: leaf.value.size for name, leaf in abstract.items() if peft.trainable(name)}
  pairs = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
  assert sum(trains.values()) == 32 * 16 * sum(inputs + outputs for inputs, outputs in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_when_it_is_made_tiny(name, tmp_path):
  """With its task, optimizer, mesh, remat, accumulation and chunks, on eight devices."""
  values = config.to_dict(load(name))
  memory = {"name": "memory", "texts": TEXTS}
  if values["streams"]:
    values["streams"] = {stream: found | {"data": memory} for stream, found in values["streams"].items()}
  else:
    values["data"] = memory
  model = shrunk(values["model"]["name"], vocab_size=512)
  model |= {"num_experts": 8} if "num_experts" in model else {}  # one for each device of the recipe's mesh
  values |= {"tokenizer": "bytes", "model": model, "seq_len": 64, "batch_size": 16}
  values |= {"tokens_per_device": 64, "loss_chunk": 32 * bool(values["loss_chunk"]), "total_steps": 3, "eval_every": 3}
  values["optimizer"] |= {"warmup_steps": 1}
  values |= {"checkpoint_every": 3, "cache_dir": str(CACHE / "data")}
  run = build.make_run(config.from_dict(values))
  assert run.program.spec.accumulation == 2
  train.train(run, tmp_path)
  losses = np.fromfile(tmp_path / "losses.f32", "<f4")
  assert len(losses) == 3
  assert losses[0] == pytest.approx(math.log(512), abs=0.5)
  assert losses[-1] < losses[0]


@pytest.mark.parametrize(("arg", "metric"), [("sft", "perplexity"), ("dpo", "margin")])
def test_recipes_for_conversations_train_when_they_are_made_tiny(arg, metric, tmp_path):
  rows = [json.dumps({"prompt": f"{i}", "chosen": "yes", "rejected": "no"}) + "\n" for i in range(40)]
  (tmp_path / "rows.jsonl").write_text("".join(rows))
  small = {
    "model": shrunk("gpt2-tiny"),
    "tokenizer": "bytes",
    "init_from": "",
    "seq_len": 64,
    "total_steps": 4,
    "eval_every": 2,
  }
  found = {"data.path": str(tmp_path / "rows.jsonl"), "cache_dir": str(CACHE / "data")}
  values = config.to_dict(load("finetune", arg, **found)) | small
  run = build.make_run(config.from_dict(values), jax.devices()[:1])
  metrics = train.train(run, tmp_path / "run")["metrics"]
  assert f"eval/validation/{metric}" in metrics
  assert metrics["eval/validation/loss"] < metrics["step0/eval/validation/loss"]


# Experiments on words and spans of public data, with the vocabulary that they read it by.
PLACES = {
  "squad/squad.py:lora": ("bert-base-uncased", "span_qa"),
  "wnut17_ner/wnut17.py:bioes": ("bert-base-uncased", "tagging"),
  "cluener_zh/pretrained.py": ("bert-base-chinese", "tagging"),
  "cluener_zh/scratch.py": ("bert-base-chinese", "tagging"),
}


@pytest.mark.parametrize("name", PLACES)
def test_an_experiment_on_public_data_trains_when_its_model_is_made_tiny(name, data_dir, tmp_path, monkeypatch):
  monkeypatch.setattr(minilm, "directory", lambda: "runs/minilm")
  vocabulary, evaluator = PLACES[name]
  loaded = config.load(f"experiments/{name}", {"data_dir": str(data_dir)})
  small = {
    "init_from": "",
    "model": shrunk("bert-base-uncased", vocab_size=0, num_layers=1, max_len=loaded.seq_len),
    "tokenizer": str(data_dir / "tokenizers" / vocabulary),
    "cache_dir": str(CACHE / "data"),
    "total_steps": 2,
    "eval_every": 2,
    "length_buckets": (),  # each is compiled
    "evaluators": {"validation": {"name": evaluator, "split": "validation"}},
  }
  metrics = train.train(build.make_run(config.from_dict(config.to_dict(loaded) | small), jax.devices()[:1]), tmp_path)[
    "metrics"
  ]
  assert 0 <= metrics["eval/validation/f1"] < 0.5
  assert metrics["eval/validation/loss"] < metrics["step0/eval/validation/loss"]


@pytest.mark.parametrize(("arg", "metric"), [("choose", "accuracy"), ("rank", "ndcg")])
def test_recipes_for_choices_and_recommendations_train_when_they_are_made_tiny(arg, metric, tmp_path):
  write = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  write("choose.jsonl", [{"article": f"{i}", "choices": ["a", "b"], "label": i % 2} for i in range(40)])
  write("rank.jsonl", [{"user": i % 8, "item": i * i % 11, "time": i} for i in range(48)])
  write("items.jsonl", [{"item": i, "text": f"film {i}"} for i in range(11)])
  found = {"data.path": str(tmp_path / f"{arg}.jsonl"), "cache_dir": str(CACHE / "data")}
  found |= {"data.context": "article"} if arg == "choose" else {"data.items_path": str(tmp_path / "items.jsonl")}
  found |= {} if arg == "choose" else {"task.item_len": 10, "task.num_negatives": 2}
  small = {"model": shrunk("bert-tiny"), "tokenizer": "bytes", "init_from": "", "seq_len": 64, "length_buckets": ()}
  small |= {"total_steps": 2, "eval_every": 2}
  values = config.to_dict(load("finetune", arg, **found)) | small
  metrics = train.train(build.make_run(config.from_dict(values), jax.devices()[:1]), tmp_path / "run")["metrics"]
  assert f"eval/test/{metric}" in metrics
