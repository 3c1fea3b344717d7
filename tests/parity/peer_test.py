"""The peer that runs are timed against does what they do: the same losses from the same weights, batches and rates."""

import json
import re

import numpy as np
import pytest

from lm import train
from lm.bench import hf, peer, step, use
from lm.config import ConfigError
from lm.infer.generate import Sampler
from lm.pretrained import Pretrained, save_pretrained
from lm.tasks.readout import TokenMean
from tests.conftest import SIZES, make_run
from tests.parity import oracle

pytestmark = pytest.mark.parity
pytest.importorskip("peft")
# Without dropout; a row of 64 holds a text and no more, as torch's packed documents see each other.
PRETRAINING = {
  family: {
    "model": {"name": family, **SIZES, "dropout_rate": 0.0, "vocab_size": 264},
    "optimizer": {"name": "adamw", "learning_rate": 1e-2},
  }
  for family in ("bert-base-uncased", "gpt2")
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """A small BERT classifier of the labels of the tests' texts, without dropout, in transformers' format."""
  folder = tmp_path_factory.mktemp("base")
  labels = make_run("classify").tasks["classify"].labels
  cfg = oracle.transformers.BertConfig(
    vocab_size=264,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=128,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=len(labels),
    id2label=dict(enumerate(labels)),
  )
  oracle.torch.manual_seed(0)
  oracle.transformers.BertForSequenceClassification(cfg).save_pretrained(folder)
  return folder


def make(base, **settings):
  optimizer = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 0.5, "schedule": "linear"}
  return make_run("classify", init_from=str(base), model=None, optimizer=optimizer, total_steps=8, **settings)


def losses_of(trainer, run, num_steps=8):
  return [trainer.step(peer.make_rows(run, run.loader.batch(i)), float(run.schedule(i))) for i in range(num_steps)]


@pytest.mark.parametrize("method", ["full", "head", "bitfit"])
def test_losses_of_eight_steps_are_those_of_torch(method, base, tmp_path):
  run = make(base, peft=method)
  train.train(run, tmp_path)
  other = hf.Trainer(peer.make_recipe(run, tmp_path / "hf"))
  assert other.num_trainable == run.program.num_params["trainable"]
  found = losses_of(other, run)
  losses = np.fromfile(tmp_path / "losses.f32", "<f4")
  np.testing.assert_allclose(losses, found, rtol=2e-3)
  assert np.ptp(losses) > 5e-3
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert peer.accuracy(other, run, "validation") == pytest.approx(summary["metrics"]["eval/validation/accuracy"])


@pytest.mark.parametrize("method", ["lora(rank=4)", "dora(rank=4)", "adalora(initial_rank=4,target_rank=2)", "prompt"])
def test_peft_trains_as_many_parameters(method, base, tmp_path):
  run = make(base, peft=method)
  other = hf.Trainer(peer.make_recipe(run, tmp_path))
  pooler = 32 * 32 + 32  # peft trains the classifier alone, beside its own
  assert other.num_trainable == run.program.num_params["trainable"] - pooler
  losses = losses_of(other, run)
  assert np.isfinite(losses).all() and np.ptp(losses) > 0


@pytest.mark.parametrize(("task", "family"), [("causal", "gpt2"), ("mlm", "bert-base-uncased")])
def test_pretraining_from_the_same_weights_has_the_losses_of_torch(task, family, tmp_path):
  run = make_run(task, total_steps=8, **PRETRAINING[family])
  train.train(run, tmp_path)
  other = hf.Trainer(peer.make_recipe(run, tmp_path / "hf"))
  assert other.num_trainable == run.program.num_params["trainable"]
  losses = np.fromfile(tmp_path / "losses.f32", "<f4")
  np.testing.assert_allclose(losses, losses_of(other, run), rtol=2e-3)
  assert np.ptp(losses) > 5e-2


def test_turns_are_measured_in_two_processes(base):
  run = make(base)
  found = step.measure(run, rounds=2, steps=2, with_peer=True)
  other = found["peer"]
  assert found["ratio"] > 0 and len(found["ratios"]) == 2
  assert found["trainable"] == other["trainable"]
  assert found.keys() - other.keys() == {"peer", "ratio", "ratios", "compile_seconds"}
  assert 0 < other["peak_memory_bytes"] < 2**30  # of a small model beside torch alone
  assert "peer" not in step.measure(run, rounds=1, steps=1, with_peer=False)


def test_vectors_and_what_is_written_are_those_of_transformers(tmp_path):
  """The functions that the other process times give what ours gives, so that both are timed at the same work."""
  run = make_run("causal", **PRETRAINING["gpt2"])
  engine = use._engine(run)
  save_pretrained(Pretrained(engine.model, engine.params, run.tokenizer, tasks=run.tasks), tmp_path)
  writer = hf.User(str(tmp_path), "AutoModelForCausalLM", 1)
  prompts = run.loader.batch(0)["inputs"]["tokens"][:3, :9].astype(np.int64)
  ours = engine.write(prompts.tolist(), use.NEVER, Sampler(temperature=0.0, max_new_tokens=5), 0)
  assert ours == writer.write(prompts, 5).tolist()
  texts = ["one", "a longer one, of other words", "two words"]
  reader = hf.User(str(tmp_path), "AutoModel", 1)
  ours = engine.read(TokenMean(), [{"text": text} for text in texts], 2).arrays["embedding"]
  np.testing.assert_allclose(ours, reader.encode(texts, 2, 64), atol=1e-4)


@pytest.mark.parametrize("what", ["encode", "generate"])
def test_a_model_in_use_takes_turns(what, base):
  if what == "encode":
    found = use.measure_encoding(make(base), rounds=2, num_texts=4, batch_size=2, with_peer=True)
    assert found["peer"]["bytes_per_sec"] > 0
  else:
    found = use.measure_generation(make_run("causal", **PRETRAINING["gpt2"]), 2, 4, 2, with_peer=True)
    assert found["peer"]["tokens_per_sec"] > 0
  assert found["ratio"] > 0 and len(found["ratios"]) == 2


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"peft": "adapter"}, "peer: has no counterpart of config.peft=adapter; accepted are full, head"),
    ({"optimizer": "lion"}, "peer: compares runs with config.optimizer=adamw"),
    ({"regularizer": "rdrop"}, "peer: has no counterpart of config.regularizer='rdrop'; leave it unset"),
    ({"peft": "lora(dropout_rate=0.1)"}, "peer: has no counterpart of peft.dropout_rate=0.1"),
    ({"dtype": "bfloat16"}, "peer: computes in float32 on a CPU, and this run in bfloat16 on cpu"),
  ],
)
def test_what_has_no_counterpart_is_one_line(settings, words, base, tmp_path):
  settings = {"init_from": str(base), "model": None, **settings}
  with pytest.raises(ConfigError, match=re.escape(words)):
    peer.make_recipe(make_run("classify", **settings), tmp_path)


@pytest.mark.parametrize(
  ("task", "peft", "words"),
  [
    ("regress", "full", "no counterpart of task regress"),
    ("classify", "lora", "needs a base in"),
    ("mlm", "lora", "trains all parameters of task mlm"),
  ],
)
def test_a_run_that_torch_cannot_start_from_is_one_line(task, peft, words, tmp_path):
  with pytest.raises(ConfigError, match=words):
    peer.make_recipe(make_run(task, peft=peft), tmp_path)
