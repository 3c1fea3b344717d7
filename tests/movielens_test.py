"""The baselines of experiments/movielens_rank: gradients of the factors, and figures that are those of the evaluator."""

import numpy as np
import pytest

from experiments.movielens_rank import baselines
from experiments.movielens_rank.baselines import Factors, judge, pairs_of
from lm.data.sources.interactions import Interactions
from tests.data.sources.interactions_test import TAKEN, write


def loss(model, user, item, other):
  score = lambda i: model.user_UD[user] @ model.item_ID[i] + model.bias_I[i]
  return np.log1p(np.exp(score(other) - score(item)))


def test_a_step_goes_down_the_gradient(monkeypatch):
  monkeypatch.setattr(Factors, "_move", lambda self, which, rows, gradient: found.append((which, rows[0], gradient[0])))
  model, found = Factors(2, 50, dim=3, decay=0.0), []
  model.epoch(np.array([[1, 2]]))
  other = int(found[2][1])
  assert other != 2
  arrays = (model.user_UD, model.item_ID, model.bias_I)
  for which, row, gradient in found:
    for at in np.ndindex(np.shape(gradient)):
      array, place = arrays[which], (row, *at)
      moved = []
      for step in (1e-6, -1e-6):
        array[place] += step
        moved.append(loss(model, 1, 2, other))
        array[place] -= step
      assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(gradient[at], abs=1e-5)


def test_what_users_took_is_learned():
  rng = np.random.default_rng(0)
  pairs = np.array([(user, 2 * rng.integers(0, 10) + user % 2) for user in range(40) for _ in range(8)])
  model = Factors(40, 20, dim=4, decay=0.0)
  losses = [model.epoch(pairs) for _ in range(30)]
  assert losses[-1] < 0.6 * losses[0]
  right = [model.scores(user)[user % 2 :: 2].mean() > model.scores(user)[1 - user % 2 :: 2].mean() for user in range(40)]
  assert np.mean(right) > 0.9


def test_pairs_are_all_that_train_knows_and_test_items_are_unseen(tmp_path):
  options = write(tmp_path)
  train, test = (Interactions(split, **options) for split in ("train", "test"))
  assert sorted(map(tuple, pairs_of(train).tolist())) == [(0, 0), (0, 0), (0, 3), (1, 1), (1, 2)]
  assert len(pairs_of(train)) == len(TAKEN) - 4
  found = judge(test, lambda _: train.popularity)
  # u: 1 of popularity 1 beside 2 (1) and 4, 6, 7 (0): place 2. v: 4 (0) beside 0 (2), 3 (1) and 5, 7 (0): place 5.
  assert found["mrr"] == pytest.approx((1 / 2 + 1 / 5) / 2)
  assert found["auc"] == pytest.approx(((3 + 0.5) / 4 + (0 + 0.5 * 2) / 4) / 2)


def test_the_script_prints_the_table(tmp_path, capsys, monkeypatch):
  tables = {name: value for name, value in write(tmp_path).items() if "path" not in name}
  tables |= {"name": "interactions", "path": "taken.csv", "items_path": "items.csv"}
  monkeypatch.setattr(baselines, "TABLES", tables)
  baselines.main([f"--data_dir={tmp_path}", "--dim=2", "--epochs=2"])
  lines = capsys.readouterr().out.splitlines()
  assert [line.split(":")[0] for line in lines[:4]] == ["epoch 1", "epoch 2", "popularity", "popularity"]
  assert lines[-1].startswith("matrix factorisation, epoch ")
