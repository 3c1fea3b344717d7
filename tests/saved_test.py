"""A run that starts from a Hugging Face directory: which heads are new, full and LoRA, resumed, and used as any run is."""

import json

import jax
import numpy as np
import pytest

import lm
from lm import build, saved, train, tree
from lm.config import ConfigError
from lm.interop import load_pretrained, save_pretrained, weights
from lm.tasks.multilabel import Multilabel
from lm.tasks.tag import Tag
from tests.conftest import LABELS, TEXTS, make_config, make_run
from tests.interop.directories import GOLDEN, change, make

BERT, LLAMA = "bert-base-uncased", "llama-3.1-8b"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """One directory for every kind of head."""
  root = tmp_path_factory.mktemp("directories")
  kinds = {"masked": [BERT, "mlm"], "pooled": [BERT], "classes": [BERT, "classifier"], "causal": [LLAMA, "lm"]}
  for name, (preset, *heads) in kinds.items():
    make(root / name, preset, *heads)
  return root


def start(kind, folder, **settings):
  """A run from a directory: its model and tokenizer."""
  return make_run(kind, init_from=str(folder), model=None, tokenizer="", **settings)


@pytest.mark.parametrize(
  ("kind", "name", "notice", "heads"),
  [
    ("mlm", "masked", "new: none; left out: none", ["head_mlm"]),
    ("causal", "causal", "new: none; left out: none", ["head_lm"]),
    ("classify", "masked", "new: head_classify; left out: head_mlm", []),
    ("classify", "pooled", "new: head_classify/out; left out: none", ["head_classify/pooler"]),
    ("classify", "classes", "new: none; left out: none", ["head_classify"]),
    ("classify", "causal", "new: head_classify; left out: head_lm", []),
    ("mlm", "classes", "new: head_mlm; left out: head_classify", []),
  ],
)
def test_heads_that_are_there_are_taken_and_the_others_are_said(kind, name, notice, heads, folders):
  run = start(kind, folders / name)
  assert run.base.notice == notice
  state = run.init_state()
  params = tree.flatten(tree.merge(state.params, state.frozen))
  theirs = weights.load(weights.scan(folders / name))
  taken = [key for key in params if key in theirs]
  assert {key for key in taken if key.startswith("head_")} == {key for key in params if any(map(key.startswith, heads))}
  assert {key for key in theirs if key.startswith("backbone")} <= set(taken)
  for key in taken:
    np.testing.assert_array_equal(params[key], theirs[key], err_msg=key)


@pytest.mark.parametrize("peft", ["full", "lora(rank=2)"])
def test_a_run_from_a_directory_is_trained_resumed_and_used(peft, folders, tmp_path):
  folder = folders / "pooled"
  settings = {"peft": peft, "total_steps": 4, "checkpoint_every": 2}
  whole = train.train(start("classify", folder, **settings), tmp_path / "whole")
  stopped = iter([False, False, True])
  train.train(start("classify", folder, **settings), tmp_path / "parts", stop=lambda: next(stopped, True))
  assert json.loads((tmp_path / "parts" / "summary.json").read_text())["status"] == "interrupted"
  again = train.train(start("classify", folder, **settings), tmp_path / "parts")
  assert again["loss_sha256"] == whole["loss_sha256"]
  assert again["params_sha256"] == whole["params_sha256"]
  model = lm.load(tmp_path / "parts", devices=jax.devices()[:1])
  assert {row["label"] for row in model.predict(TEXTS[:3])} <= set(LABELS)
  assert "backbone/embed/embedding" in tree.flatten(model.params)


def test_a_base_that_changed_is_refused_when_its_run_is_used(tmp_path):
  folder = make(tmp_path / "base", BERT)
  train.train(start("classify", folder, peft="lora(rank=2)", total_steps=1), tmp_path / "run")
  path = folder / "model.safetensors"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(ConfigError, match="its parameters changed since that run started"):
    lm.load(tmp_path / "run")


def test_a_directory_answers_as_a_predictor(folders):
  load = lambda name, devices=1: lm.load(folders / name, devices=jax.devices()[:devices])
  model = load("classes")
  found = model.predict(TEXTS[:5])
  assert {row["label"] for row in found} <= set(LABELS) and list(found[0]["scores"]) == sorted(set(LABELS))
  np.testing.assert_allclose(load("classes", 8).embed(TEXTS[:5]), model.embed(TEXTS[:5]), atol=1e-5)
  causal = load("causal")
  assert causal.score(["The list"])[0]["num_tokens"] == len("The list") + 1
  assert causal.generate(["The list"], max_new_tokens=4, temperature=0) == causal.generate(["The list"], 4, 0)
  with pytest.raises(ConfigError, match="generate: needs an autoregressive run"):
    model.generate(["The list"])


def test_a_directory_has_the_tasks_of_its_heads(folders):
  assert {name: list(saved.load_tasks(folders / name)) for name in ("masked", "pooled", "classes", "causal")} == {
    "masked": ["mlm"],
    "pooled": [],
    "classes": ["classify"],
    "causal": ["causal"],
  }
  assert saved.load_tasks(folders / "classes")["classify"].labels == tuple(sorted(set(LABELS)))


def test_special_tokens_are_those_of_the_config_or_else_of_the_tokenizer(folders, tmp_path):
  assert saved.token_ids(folders / "masked") == {"pad_token_id": 0, "eos_token_id": 3}
  train.train(make_run(total_steps=1), tmp_path)
  assert saved.token_ids(tmp_path) == {
    f"{name}_token_id": i for name, i in zip(("pad", "bos", "eos", "cls", "sep"), (0, 2, 3, 2, 3), strict=True)
  }


def test_without_a_tokenizer_one_must_be_given():
  folder = str(GOLDEN / "bert-mlm")
  with pytest.raises(ConfigError, match=r"config.tokenizer: not set, and config.init_from=.* has none"):
    build.make_run(make_config("mlm", init_from=folder, model=None, tokenizer=""))
  with pytest.raises(ConfigError, match="has 261 pieces, config.init_from=.* embeds 64"):
    build.make_run(make_config("mlm", init_from=folder, model=None))
  with pytest.raises(ConfigError, match="has no tokenizer files"):
    lm.load(folder)
  assert load_pretrained(folder).tokenizer is None


def test_what_is_neither_is_one_line_that_names_the_setting(tmp_path):
  with pytest.raises(ConfigError, match=r"config.init_from=.*: not the workdir of a run and no Hugging Face directory"):
    build.make_run(make_config("mlm", init_from=str(tmp_path), model=None, tokenizer=""))


def test_a_classifier_of_several_labels_at_once_is_a_task_of_its_own_and_others_are_refused(tmp_path):
  folder = change(tmp_path / "x", "modernbert-mean", problem_type="multi_label_classification")
  (task,) = saved.load_tasks(folder).values()
  assert isinstance(task, Multilabel) and len(task.labels) > 1
  assert load_pretrained(folder).describe(saved.scan(folder).family)["problem_type"] == "multi_label_classification"
  folder = change(tmp_path / "y", "modernbert-mean", problem_type="regression")
  with pytest.raises(ConfigError, match="problem_type='regression'; accepted are single_label_classification, multi_label"):
    saved.load_tasks(folder)


def test_a_number_is_one_output_there_and_comes_back(folders, tmp_path):
  run = start("regress", folders / "pooled", total_steps=1)
  assert run.base.notice == "new: head_classify/out; left out: none"
  train.train(run, tmp_path / "run")
  ours = load_pretrained(tmp_path / "run")
  written = save_pretrained(ours, tmp_path / "hf")
  assert (written["problem_type"], written["id2label"]) == ("regression", {"0": "LABEL_0"})
  theirs = load_pretrained(tmp_path / "hf")
  assert {name: type(task).__name__ for name, task in theirs.tasks.items()} == {"regress": "Regress"}
  tokens = np.arange(1, 9)[None]
  np.testing.assert_allclose(ours.run(tokens)["logits"], theirs.run(tokens)["logits"], atol=1e-6)
  assert theirs.run(tokens)["logits"].shape == (1, 1)
  said = [lm.load(tmp_path / name).predict(["some text"]) for name in ("run", "hf")]
  assert said[0] == [{"value": pytest.approx(said[1][0]["value"], abs=1e-6)}]


@pytest.mark.parametrize("peft", ["lora", "bitfit", "ia3", "adapter", "prefix", "prompt"])
def test_a_head_of_the_vocabulary_is_the_bases_and_stays_as_it_is(peft, folders):
  run = start("mlm", folders / "masked", peft=peft)
  assert not any(trains for name, trains in run.program.trainable.items() if name.startswith("head_"))
  with pytest.raises(ConfigError, match=f"init_from='.*classes': has no head_mlm, which config.peft='{peft}' does not train"):
    start("mlm", folders / "classes", peft=peft)


@pytest.mark.parametrize(("kind", "head"), [("tag", "head_tag"), ("span_qa", "head_span")])
def test_heads_of_words_and_spans_start_a_run_and_are_written_and_read_back(kind, head, folders, tmp_path):
  run = start(kind, folders / "masked", total_steps=1)
  assert run.base.notice == f"new: {head}; left out: head_mlm"
  train.train(run, tmp_path / "run")
  again = start(kind, tmp_path / "run")
  assert again.base.notice == "new: none; left out: none"
  written = save_pretrained(load_pretrained(tmp_path / "run"), tmp_path / "hf")
  assert written["architectures"] == ["BertForTokenClassification" if kind == "tag" else "BertForQuestionAnswering"]
  text = "The list sorts number 3."
  said = [lm.load(tmp_path / name).predict([text if kind == "tag" else ("list?", text)]) for name in ("run", "hf")]
  assert json.dumps(said[0]) == json.dumps(said[1])
  assert start(kind, tmp_path / "hf").base.notice == "new: none; left out: none"


def test_a_head_that_a_family_has_no_class_for_is_refused(folders, tmp_path):
  train.train(start("tag", folders / "causal", total_steps=1), tmp_path / "run")
  pretrained = load_pretrained(tmp_path / "run")
  assert not weights.is_written(pretrained.model)
  with pytest.raises(ConfigError, match="^the tagger's head of a llama has no counterpart; accepted are lm, classifier$"):
    save_pretrained(pretrained, tmp_path / "hf")
  assert not (tmp_path / "hf").exists()


def test_the_class_that_a_config_names_says_what_a_head_is(tmp_path):
  """Its tensors are called alike; files of old versions have a pooler beside."""
  named = {"architectures": ["BertForTokenClassification"], "id2label": {"0": "I-x", "1": "O", "2": "B-x"}}
  folder = change(tmp_path / "tags", "bert-classifier", **named)
  assert saved.load_tasks(folder) == {
    "tag": Tag(tags=("B-x", "I-x", "O"), scheme="bio", outputs=("I-x", "O", "B-x"), window=64)
  }
  assert [(name, spec.num_outputs) for name, spec in weights.scan(folder).model.heads] == [("classify", 0), ("tag", 3)]
  assert "classify" in saved.load_tasks(change(tmp_path / "labels", "bert-classifier", architectures=None))
  plain = change(tmp_path / "plain", "bert-classifier", **named | {"id2label": {"0": "NOUN", "1": "O", "2": "VERB"}})
  assert saved.load_tasks(plain)["tag"].scheme == "plain"
  with pytest.raises(ConfigError, match="of its own for each of the tagger's 3 outputs"):
    saved.load_tasks(change(tmp_path / "few", "bert-classifier", **named | {"id2label": {"0": "O"}}))
