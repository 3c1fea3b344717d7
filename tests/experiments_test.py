"""Every fine-tuning config of experiments/ reads its real data: rows, labels and a first batch that counts something."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import minilm
from experiments.banking77_intent import intent
from experiments.phrasebank_monitor import sentiment
from lm import build, config
from lm.shapes import INPUTS
from tests.conftest import SIZES

ROOT = Path(__file__).parent.parent
CHINESE = ("tnews_zh/topics", "chnsenticorp_zh/reviews")
# By file, the arguments that read other data or learn another task; with the number of labels, None where there are none.
CASES = {
  **{f"banking77_intent/intent:{arg}": 77 for arg in intent.ARGUMENTS if not arg.endswith("-10")},
  **{f"phrasebank_monitor/sentiment:{arg}": 3 for arg in sentiment.ARGUMENTS},
  "tnews_zh/topics": 15,
  "chnsenticorp_zh/reviews": 2,
  "cola/acceptability": 2,
  "mrpc/paraphrase": 2,
  "stsb/similarity": None,
  "sst2_methods/sst2:full": 2,
}
# They pretrain and read no labels of a file, or have tests of their own.
OTHERS = {f"pretrain/{name}" for name in ("wikitext_causal", "wikitext_mlm", "tnews_mlm")} | {
  f"docstring_module/{name}" for name in ("full", "scratch")
}
OTHERS |= {"glue/task", "clue/task"}  # tests/suites_test.py
OTHERS |= {"squad/squad", "wnut17_ner/wnut17", "cluener_zh/pretrained", "cluener_zh/scratch"}  # tests/configs_test.py
OTHERS |= {"movielens_rank/movielens"}  # tests/movielens_test.py
# By file and argument, the model that takes the place of its base.
SMALL = {
  "alpaca_sft/alpaca:lora": "gpt2-tiny",
  "preference_dpo/preferences:ipo": "gpt2-tiny",
  **{f"transfer/transfer:{arg}": "bert-tiny" for arg in ("direct", "texts", "sst2", "together")},
}
OTHERS |= {name.partition(":")[0] for name in SMALL}
OTHERS |= {"benchmarks/shapes"}


def test_every_config_is_a_case():
  files = [path for path in (ROOT / "experiments").glob("*/*.py") if "\ndef get_config(" in path.read_text()]
  assert {f"{path.parent.name}/{path.stem}" for path in files} == {name.partition(":")[0] for name in CASES} | OTHERS


@pytest.mark.parametrize(("name", "millions"), [("gpt2_1m", 0.8), ("gpt2_10m", 10.8), ("gpt2_124m", 124.0)])
def test_shapes_of_benchmarks_have_the_sizes_that_they_are_called_by(name, millions):
  outline = build.make_outline(config.load(str(ROOT / "experiments" / "benchmarks" / f"shapes.py:{name}")), jax.devices()[:1])
  assert round(outline.program.num_params["total"] / 1e6, 1) == millions


@pytest.mark.parametrize("name", CASES)
def test_a_config_reads_its_data(name, data_dir, tmp_path, monkeypatch):
  """With a small random model in the place of its base, and the vocabulary of that."""
  monkeypatch.setattr(minilm, "directory", lambda: "unused")
  file, _, arg = name.partition(":")
  vocabulary = "bert-base-chinese" if file in CHINESE else "bert-base-uncased"
  model = {"name": "bert-tiny", **SIZES, "max_len": 256}
  path = str(ROOT / "experiments" / f"{file}.py") + (f":{arg}" if arg else "")
  settings = {"init_from": "", "model": json.dumps(model), "tokenizer": str(data_dir / "tokenizers" / vocabulary)}
  cfg = config.load(path, settings | {"data_dir": str(data_dir), "cache_dir": str(tmp_path)})
  run = build.make_run(cfg, jax.devices()[:1])
  (task,) = run.tasks.values()
  batch, (key,) = run.loader.batch(0), run.tasks
  assert (batch[INPUTS]["segment_ids"] > 0).any(1).all()
  assert batch[key]["weights"].all()
  if name.startswith("banking77_intent/intent:embed"):
    assert len({run.source(key, "train")[i]["label"] for i in range(len(run.source(key, "train")))}) == CASES[name]
  else:
    assert len(getattr(task, "labels", ())) == (CASES[name] or 0)
  if arg.endswith("-5"):
    assert len(run.source(key, "train")) == 5 * 77


@pytest.mark.parametrize("name", SMALL)
def test_a_config_on_a_model_pretrained_here_reads_its_data(name, data_dir, tmp_path):
  file, _, arg = name.partition(":")
  model = {"name": SMALL[name], **SIZES, "max_len": 1024}
  settings = {"init_from": "", "model": json.dumps(model), "tokenizer": "bytes"}
  if SMALL[name] == "bert-tiny":
    settings["tokenizer"] = str(data_dir / "tokenizers" / "bert-base-uncased")
  cfg = config.load(f"{ROOT}/experiments/{file}.py:{arg}", settings | {"data_dir": str(data_dir), "cache_dir": str(tmp_path)})
  run = build.make_run(cfg, jax.devices()[:1])
  batch = run.loader.batch(0)
  assert len(run.tasks) == (2 if arg == "together" else 1)
  assert all(np.any(batch[key]["weights"]) for key in run.tasks)
  assert len(dict(run.program.spec.model.heads)) == (2 if arg == "together" else 1)
