"""Retrieval: metrics are those of counting by hand, and the corpus is what the rows of a split say."""

import csv
import json
import math

import numpy as np
import pytest

from lm import metrics, train
from lm.evals.retrieval import make_corpus
from tests.conftest import make_run

PAIRS = [("who", "a"), ("who", "b"), ("what", "a"), ("when", "c"), ("where", "d")]


def by_hand(hits, k):
  """Of one question: hits, whether its n-th document is relevant."""
  ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
  gains = [1 / math.log2(rank + 1) for rank in ranks if rank <= k]
  return {
    "recall@1": sum(rank == 1 for rank in ranks) / len(ranks),
    f"recall@{k}": sum(rank <= k for rank in ranks) / len(ranks),
    f"ndcg@{k}": sum(gains) / sum(1 / math.log2(n + 1) for n in range(1, min(len(ranks), k) + 1)),
    f"mrr@{k}": 1 / ranks[0] if ranks[0] <= k else 0.0,
    "map": sum(n / rank for n, rank in enumerate(ranks, 1)) / len(ranks),
  }


@pytest.mark.parametrize("num_documents", [4, 30])
def test_ranking_metrics_are_those_of_counting(num_documents):
  rng = np.random.default_rng(0)
  hit_QN = rng.random((50, num_documents)) < rng.choice([0.05, 0.3, 0.9], 50)[:, None]
  hit_QN[np.arange(50), rng.integers(num_documents, size=50)] = True
  found = metrics.ranking(hit_QN, 5)
  for i, hits in enumerate(hit_QN):
    assert {name: value[i] for name, value in found.items()} == pytest.approx(by_hand(hits, 5))


def corpus_of(groups, questions, pair):
  R = len(groups)
  vectors = np.arange(R * 2, dtype=np.float32).reshape(R, 2)
  candidates = np.stack([vectors + 100 * c for c in range(1, 1 + np.shape(groups)[1])], axis=1)
  return make_corpus(np.arange(R), np.asarray(questions), np.asarray(groups), vectors, candidates, pair=pair)


def test_documents_of_pairs_stand_once_and_are_relevant_wherever_their_question_has_them():
  corpus = corpus_of([[11, 21], [12, 0], [11, 12], [13, 11]], [1, 1, 2, 3], pair=True)
  assert corpus.sequence_Q.tolist() == [0, 2, 3]
  assert corpus.relevant_QN.tolist() == [[True, True, False, False], [True, False, False, False], [False, False, True, False]]
  assert corpus.document_ND[:, 0].tolist() == [100, 102, 106, 200]  # 11, 12, 13 and 21, where each stands first
  assert corpus.allowed_QN.all()


def test_labelled_texts_look_for_others_of_their_label():
  corpus = corpus_of([[7], [8], [7], [7]], [1, 2, 3, 1], pair=False)
  assert corpus.sequence_Q.tolist() == [0, 1, 2]
  assert corpus.relevant_QN.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
  assert (~corpus.allowed_QN).tolist() == np.eye(3, dtype=bool).tolist()


def test_a_run_learns_to_find_and_tells_what_it_does_not(tmp_path, capsys):
  rows = [{"text": q, "text_pair": a, "text_negatives": ["e"]} for q, a in PAIRS]
  task = {"name": "embed", "matryoshka_dims": (4,)}
  optimizer = {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.0}
  model = {"name": "bert-tiny", "num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64, "dropout_rate": 0.0}
  data = {"name": "memory", "rows": tuple(map(json.dumps, rows))}
  run = make_run("embed", task=task, model=model, data=data, total_steps=40, eval_every=40, optimizer=optimizer)
  found = train.train(run, tmp_path)["metrics"]
  assert found["eval/validation/recall@1"] == pytest.approx((0.5 + 1 + 1 + 1) / 4)  # "who" has two answers
  assert found["eval/validation/map"] == found["eval/validation/ndcg@10"] == 1 > found["step0/eval/validation/map"]
  assert found["eval/validation/dim4_ndcg@10"] > 0.9
  line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("test: recall@1"))
  assert f"ndcg@10 1.000 (step 0 {found['step0/eval/test/ndcg@10']:.3f})" in line
  assert not (tmp_path / "errors.csv").exists()


def test_single_texts_without_labels_have_a_loss_and_nothing_to_find(tmp_path):
  run = make_run("embed", data={"name": "memory", "texts": ("a b", "c d", "e f")}, total_steps=2, eval_every=2)
  found = train.train(run, tmp_path)["metrics"]
  names = {name.removeprefix("eval/validation/") for name in found if name.startswith("eval/validation/")}
  assert names == {"loss", "accuracy"}


def test_questions_that_find_others_first_are_listed_the_worst_first(tmp_path):
  labels = tuple(str(i * i % 7) for i in range(20))
  data = {"name": "memory", "texts": tuple(f"text {i}" for i in range(20)), "text_labels": labels}
  found = train.train(make_run("embed", data=data, total_steps=1, eval_every=1), tmp_path)["metrics"]
  assert found["eval/test/recall@1"] < 1
  with (tmp_path / "errors.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["split"].startswith("test")]
  ranks = [int(row["rank"]) for row in rows]
  assert rows and ranks == sorted(ranks, reverse=True) and min(ranks) > 1
  assert all(row["text"] == f"text {row['row']}" for row in rows)
