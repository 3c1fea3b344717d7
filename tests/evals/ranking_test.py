"""Places of items: figures against brute force and scikit-learn's definitions, candidates, and a run that learns to rank."""

import math

import jax
import numpy as np
import pytest

from lm import evaluate, train
from lm.evals.ranking import Ranking, summarize
from tests.conftest import make_run
from tests.data.sources.interactions_test import write


def brute_force(scores_UI, target_U, allowed, k):
  """By sorting, with the target behind its equals; AUC over all pairs."""
  values = {"ndcg": [], "recall": [], "mrr": [], "auc": []}
  for scores, target, mine in zip(scores_UI, target_U, allowed, strict=True):
    order = sorted([target, *mine], key=lambda i: (-scores[i], i == target))
    place = order.index(target) + 1
    values["ndcg"].append(1 / math.log2(place + 1) if place <= k else 0.0)
    values["recall"].append(float(place <= k))
    values["mrr"].append(1 / place)
    values["auc"].append(np.mean([(scores[target] > scores[i]) + 0.5 * (scores[target] == scores[i]) for i in mine]))
  return {name: float(np.mean(found)) for name, found in values.items()}


@pytest.mark.parametrize("k", [1, 3, 10])
def test_figures_are_those_of_brute_force_with_ties(k):
  rng = np.random.default_rng(k)
  scores_UI, target_U = rng.integers(0, 9, (50, 30)).astype(float), rng.integers(0, 30, 50)
  allowed = [[i for i in range(30) if i != t and rng.random() < 0.7] for t in target_U]
  counts = [
    (np.sum(s[mine] > s[t]), np.sum(s[mine] == s[t]), len(mine))
    for s, t, mine in zip(scores_UI, target_U, allowed, strict=True)
  ]
  assert summarize(*np.asarray(counts).T, k=k) == pytest.approx(brute_force(scores_UI, target_U, allowed, k))


def test_a_model_that_scores_all_alike_is_no_good():
  found = summarize(np.array([0]), np.array([99]), np.array([99]), k=10)
  assert found == {"ndcg": 0.0, "recall": 0.0, "mrr": 0.01, "auc": 0.5}


def taken(num_users=24, num_items=12, length=6):
  """Users who keep to even or to odd items; which ones they take is told by the text of the kind."""
  rng = np.random.default_rng(0)
  rows = [
    (f"u{u}", 2 * int(i) + u % 2, t) for u in range(num_users) for t, i in enumerate(rng.permutation(num_items // 2)[:length])
  ]
  items = "id,title,kinds\n" + "".join(f"{i},{'abcdefghijkl'[i]},{'xyz'[i % 2] * 3}\n" for i in range(num_items))
  return rows, items


def make(tmp_path, **settings):
  data = {"name": "interactions", **write(tmp_path, *taken(length=5)), "history": 3}
  task = {"name": "rank", "item_len": 10, "num_negatives": 1}  # for some users it is the positive, and they count all the same
  return make_run("rank", task=task, data=data, **settings)


@pytest.mark.parametrize("candidates", [0, 4])
def test_a_split_is_judged_as_brute_force_does_it(candidates, tmp_path):
  run = make(tmp_path)
  evaluator = Ranking(run, split="test", name="test", candidates=candidates, seed=3 if candidates else 0)
  run.program.compile([], evaluate.eval_shapes({"test": evaluator}))
  state = run.init_state()
  found = dict(evaluator(state.params))
  source, task, model, tok = run.source("rank", "test"), evaluator.data.task, run.program.spec.model, run.tokenizer

  def vector(text, length):
    ids = np.asarray([tok.cls_id, *tok.encode(text)[: length - 2], tok.sep_id])
    rows = {name: np.zeros((1, 64), np.int32) for name in ("tokens", "segment_ids", "positions")}
    rows["tokens"][0, : len(ids)], rows["segment_ids"][0, : len(ids)] = ids, 1
    rows["positions"][0, : len(ids)] = np.arange(len(ids))
    h = np.asarray(hidden(rows | {"row": np.zeros(1, np.int32)}))[0, : len(ids)].mean(0)
    return h / np.linalg.norm(h)

  hidden = jax.jit(lambda inputs: model.hidden(state.params, inputs).hidden_BTD)
  items = np.stack([vector(text, task.item_len) for text in source.items])
  numbers = range(len(items), len(source))
  scores = np.stack([items @ vector(source[i]["query"], 64) for i in numbers])
  target = [source.items.index(source[i]["positive"]) for i in numbers]
  allowed = [sorted(set(range(len(items))) - set(source.known(i).tolist()) - {t}) for i, t in zip(numbers, target, strict=True)]
  if candidates:
    draw = lambda i, mine: np.random.default_rng([3, i]).choice(np.array(mine), min(candidates, len(mine)), replace=False)
    allowed = [draw(i, mine).tolist() for i, mine in zip(numbers, allowed, strict=True)]
    assert all(len(mine) == candidates for mine in allowed)
  expected = brute_force(scores, target, allowed, 10)
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-5), name
  popular = brute_force(np.broadcast_to(source.popularity, scores.shape), target, allowed, 10)
  for name, value in popular.items():
    assert found[f"baseline/test_popularity_{name}"] == pytest.approx(value), name


def test_what_is_told_by_the_text_is_learned_and_told_beside_popularity(tmp_path, capsys):
  run = make(tmp_path, total_steps=60, eval_every=30, optimizer={"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0})
  metrics = train.train(run, tmp_path / "run")["metrics"]
  assert metrics["eval/test/auc"] > 0.8  # all items of the other kind below
  line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test: nDCG@10"))
  parts = [f"popularity {metrics['baseline/test_popularity_ndcg']:.3f}", f"step 0 {metrics['step0/eval/test/ndcg']:.3f}"]
  assert line.startswith(f"test: nDCG@10 {metrics['eval/test/ndcg']:.3f} ({', '.join(parts)}), recall@10 ")
  assert line.endswith("24 users among 12 items")


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"k": 0}, "evaluators: k=0: must be 1 or more"),
    ({"candidates": -1}, "evaluators: candidates=-1: must be 0 or more"),
    ({"seed": 1}, "evaluators: seed=1: no effect without candidates"),
  ],
)
def test_bad_settings_are_one_line(options, words, tmp_path):
  with pytest.raises(ValueError, match=f"^{words}"):
    Ranking(make(tmp_path), **options)
