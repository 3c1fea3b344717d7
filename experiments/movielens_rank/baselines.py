"""Popularity, and matrix factorisation by BPR (Rendle et al. 2009), on the examples and the candidates of the runs beside them.

python -m experiments.movielens_rank.baselines --data_dir=DATA [--dim=64 --epochs=30 --seed=0]

Of a user and an item it knows the number alone. Its epoch is the best one by nDCG on validation; test is judged by that one.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.movielens_rank.movielens import TABLES
from lm.config import parse_plug
from lm.data.source import located
from lm.data.sources.interactions import Interactions
from lm.evals.ranking import summarize

BATCH = 256


@dataclasses.dataclass
class Factors:
  """Score of item i for user u: user_UD[u] @ item_ID[i] + bias_I[i]. BPR by Adagrad, with weight decay."""

  num_users: int
  num_items: int
  dim: int = 64
  learning_rate: float = 0.05
  decay: float = 0.002
  seed: int = 0

  def __post_init__(self):
    self._rng = np.random.default_rng(self.seed)
    self.user_UD = self._rng.normal(0, 0.1, (self.num_users, self.dim))
    self.item_ID = self._rng.normal(0, 0.1, (self.num_items, self.dim))
    self.bias_I = np.zeros(self.num_items)
    self._squares = [np.full_like(array, 1e-8) for array in (self.user_UD, self.item_ID, self.bias_I)]

  def epoch(self, pairs_P2: np.ndarray) -> float:
    """One pass over (user, item) pairs, each with an item drawn from all; returns the mean loss in nats."""
    order, total = self._rng.permutation(len(pairs_P2)), 0.0
    for first in range(0, len(order), BATCH):
      user, item = pairs_P2[order[first : first + BATCH]].T
      other = self._rng.integers(0, self.num_items, len(user))
      u_BD, i_BD, j_BD = self.user_UD[user], self.item_ID[item], self.item_ID[other]
      margin_B = np.sum(u_BD * (i_BD - j_BD), axis=1) + self.bias_I[item] - self.bias_I[other]
      total += np.logaddexp(0, -margin_B).sum()
      pull_B1 = (1 / (1 + np.exp(margin_B)))[:, None]  # minus the derivative of the loss by the margin
      self._move(0, user, self.decay * u_BD - pull_B1 * (i_BD - j_BD))
      self._move(1, item, self.decay * i_BD - pull_B1 * u_BD)
      self._move(1, other, self.decay * j_BD + pull_B1 * u_BD)
      self._move(2, item, self.decay * self.bias_I[item] - pull_B1[:, 0])
      self._move(2, other, self.decay * self.bias_I[other] + pull_B1[:, 0])
    return total / len(order)

  def scores(self, user: int) -> np.ndarray:
    """Of all items."""
    return self.item_ID @ self.user_UD[user] + self.bias_I

  def _move(self, which: int, rows: np.ndarray, gradient: np.ndarray) -> None:
    """A step of Adagrad on some rows, which may come several times."""
    array, squares = (self.user_UD, self.item_ID, self.bias_I)[which], self._squares[which]
    summed = np.zeros_like(array)
    np.add.at(summed, rows, gradient)
    touched = np.unique(rows)
    squares[touched] += summed[touched] ** 2
    array[touched] -= self.learning_rate * summed[touched] / np.sqrt(squares[touched])


def pairs_of(source: Interactions) -> np.ndarray:
  """(user, item) numbers [P, 2] of all that the training split knows, the first item of each user too."""
  numbers = range(len(source.items), len(source))
  later = [source.taken(i) for i in numbers]
  first = [(source.taken(i)[0], int(source.known(i)[0])) for i in numbers if len(source.known(i)) == 1]
  return np.asarray(first + later)


def judge(source: Interactions, scores, k: int = 10) -> dict[str, float]:
  """`lm.evals.ranking.summarize` over the users of a held-out split, among the items that they do not know."""
  counts = []
  for i in range(len(source.items), len(source)):
    user, item = source.taken(i)
    scores_I = scores(user)
    free_I = np.ones(len(scores_I), bool)
    free_I[source.known(i)] = False
    free_I[item] = False
    others_I = scores_I[free_I]
    counts.append((np.sum(others_I > scores_I[item]), np.sum(others_I == scores_I[item]), len(others_I)))
  return summarize(*np.asarray(counts).T, k=k)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a line per epoch, then the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data_dir", required=True, help="folder with ml-latest-small/")
  for name, default in (("dim", 64), ("epochs", 30), ("seed", 0)):
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args(argv)
  options = dict(located(parse_plug("data", TABLES), args.data_dir).options)
  train, validation, test = (Interactions(split, **options) for split in ("train", "validation", "test"))
  pairs_P2 = pairs_of(train)
  model = Factors(int(pairs_P2[:, 0].max()) + 1, len(train.items), dim=args.dim, seed=args.seed)
  best: tuple[float, int, dict[str, float]] = (-1.0, 0, {})
  for epoch in range(1, args.epochs + 1):
    loss, found = model.epoch(pairs_P2), judge(validation, model.scores)
    if found["ndcg"] > best[0]:
      best = found["ndcg"], epoch, judge(test, model.scores)
    print(f"epoch {epoch}: loss {loss:.3f}, validation {_said(found)}")
  print(f"popularity: validation {_said(judge(validation, lambda _: train.popularity))}")
  print(f"popularity: test {_said(judge(test, lambda _: train.popularity))}")
  print(f"matrix factorisation, epoch {best[1]}: test {_said(best[2])}")


def _said(values: dict[str, float]) -> str:
  return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


if __name__ == "__main__":
  main()
