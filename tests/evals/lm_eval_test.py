"""What `lm_eval` rests on, without its package: scores of continuations by hand, and its absence in one line."""

import sys

import jax
import numpy as np
import pytest

import lm
from lm import train
from lm.config import ConfigError
from lm.evals.lm_eval import Questions, flatten
from lm.infer.generate import Sampler
from lm.tasks.readout import Continuation
from tests.conftest import make_run


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  train.train(make_run("causal", total_steps=3), workdir)
  return lm.load(workdir, devices=jax.devices()[:1]).engine


def by_hand(engine, context, continuation):
  """Sum of log p and whether every token is the likeliest, from the logits of all positions of one row."""
  tokens = np.asarray([[*context, *continuation][-engine.longest - 1 :]], np.int32)
  inputs = {"tokens": tokens[:, :-1], "segment_ids": np.ones_like(tokens[:, :-1]), "row": np.arange(1)}
  inputs["positions"] = np.arange(tokens.shape[1] - 1, dtype=np.int32)[None]
  hidden = engine.model.hidden(engine.params, inputs).hidden_BTD
  log_p_TV = np.asarray(jax.nn.log_softmax(engine.model.logits(engine.params, "lm", hidden, inputs["row"])[0]), np.float64)
  places = np.arange(len(log_p_TV))[len(log_p_TV) - len(continuation) :]
  targets = tokens[0, 1:][places]
  return log_p_TV[places, targets].sum(), bool((log_p_TV[places].argmax(1) == targets).all())


def test_a_continuation_is_scored_behind_its_context_and_nothing_else(engine):
  encode, bos = engine.tokenizer.encode, engine.tokenizer.bos_id
  texts = [
    ("The module", " reads"),
    ("", "abc"),
    ("The list sorts" * 9, " it"),
    ("a", ""),
    ("The queue", " holds a number" * 4),
  ]
  pairs = [([bos, *encode(context)], list(encode(continuation))) for context, continuation in texts]
  written = engine.write([pairs[0][0]], -1, Sampler(temperature=0, max_new_tokens=5), seed=0)[0]
  pairs.append((pairs[0][0], written))
  examples = [{"context": context, "continuation": continuation} for context, continuation in pairs]
  found = engine.read(Continuation(max_len=engine.longest), examples, 2)
  for i, (context, continuation) in enumerate(pairs):
    log_p, greedy = by_hand(engine, context, continuation)
    assert -found.arrays["loss"][i] == pytest.approx(log_p, rel=1e-5, abs=1e-6)
    assert found.arrays["num_tokens"][i] == len(continuation)
    assert (found.arrays["num_likeliest"][i] == len(continuation)) == greedy
  assert greedy and len(written) == 5, "what greedy decoding writes is the likeliest"


def test_a_continuation_longer_than_a_row_is_one_line(engine):
  example = {"context": [1], "continuation": [9] * (engine.longest + 1)}
  with pytest.raises(ConfigError, match="^a continuation of 65 tokens: the model reads at most 64$"):
    engine.read(Continuation(max_len=engine.longest), [example], 1)


def test_metrics_are_named_by_task_metric_and_filter():
  values = {"alias": "a", "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1.0, "sample_len": 3}
  assert dict(flatten({"results": {"a": values}})) == {"a_acc": 0.5, "a_exact_match_strict": 1.0}


def test_without_the_package_it_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "lm_eval", None)
  monkeypatch.delitem(sys.modules, "lm.evals.harness", raising=False)
  with pytest.raises(ConfigError, match=r"^lm_eval: .* not installed; get it: pip install 'lm\[eval\]'$"):
    Questions(tasks=("hellaswag",))
