"""How high the item that a user took next stands among those of the catalogue: nDCG, recall, reciprocal rank and AUC."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lm.data import encode, store
from lm.data.loader import EMPTY, EvalLoader
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics

BLOCK = 256  # users whose scores of all items exist at a time


@dataclasses.dataclass
class Ranking(SplitEvaluator):
  """Yields loss and accuracy on drawn items, and ndcg, recall, mrr and auc over the users of the split, as `summarize` says.

  Every item of the catalogue is encoded once. A user's candidates are all items but those known from the time before, or the
  next one and `candidates` others, drawn once by the seed; figures of drawn ones are higher, and may order models otherwise
  (Krichene and Rendle 2020). Where the source says how often items were taken in train, baseline/<split>_popularity_<metric>
  is that of the commonest first. When the run ends it tells these beside step 0.
  """

  k: int = 10  # places that count for nDCG and recall
  candidates: int = 0  # items that a user's next one is compared with, drawn once; 0 is all that the user does not know
  seed: int = 0  # of that draw

  headline = "ndcg"

  def __post_init__(self):
    super().__post_init__()
    for name, least in (("k", 1), ("candidates", 0)):
      if getattr(self, name) < least:
        raise ValueError(f"evaluators: {name}={getattr(self, name)}: must be {least} or more")
    if self.seed and not self.candidates:
      raise ValueError(f"evaluators: seed={self.seed}: no effect without candidates")
    self._source: Any = self.run.source(self.stream, self.split)
    self._number = {text: i for i, text in enumerate(self._source.items)}
    sequences = (self.data.task.encode_item(text, self.run.tokenizer) for text in self._source.items)
    catalogue = dataclasses.replace(self.data, store=store.Store(None, encode.collect(sequences)))
    config = self.run.config
    self._catalogue = EvalLoader(catalogue, batch_size=config.batch_size, seq_len=config.seq_len, buckets=config.length_buckets)
    self._latest: tuple[dict[str, float], int] | None = None

  def __call__(self, params):
    means, (number_U, user_UD) = self.predictions(params, "user")
    user_UD, item_ID = _unit(user_UD), _unit(self._encode_catalogue(params))
    values = means | self._judge(number_U, lambda users: user_UD[users] @ item_ID.T)
    if (taken := getattr(self._source, "popularity", None)) is not None:
      always = self._judge(number_U, lambda users: np.broadcast_to(taken, (len(user_UD[users]), len(taken))))
      values |= {f"baseline/{self.split}_popularity_{name}": value for name, value in always.items()}
    self._latest = values, len(number_U)
    yield from values.items()

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    (values, num_users), curves, parts = self._latest, read_metrics(workdir), []
    for name, words in (("ndcg", f"nDCG@{self.k}"), ("recall", f"recall@{self.k}"), ("mrr", "MRR"), ("auc", "AUC")):
      popular = values.get(f"baseline/{self.split}_popularity_{name}")
      beside = [*([] if popular is None else [f"popularity {popular:.3f}"]), *self.before(curves, name)]
      parts.append(f"{words} {values[name]:.3f}" + (f" ({', '.join(beside)})" if beside else ""))
    among = f"{self.candidates:,} drawn items each" if self.candidates else f"{len(self._number):,} items"
    return f"{self.name}: {', '.join(parts)}; {num_users:,} users among {among}"

  def _encode_catalogue(self, params: dict) -> np.ndarray:
    """A vector of every item, [I, D], in their order."""
    found: dict[int, np.ndarray] = {}
    for _, result in self.passes(params, self._catalogue):
      vector_BD = result["predictions"][f"{self.data.key}/user"]
      found |= {int(i): vector for i, vector in zip(result["sequence"], vector_BD, strict=True) if i != EMPTY}
    return np.stack([found[i] for i in range(len(found))])

  def _judge(self, number_U: np.ndarray, score: Callable[[slice], np.ndarray]) -> dict[str, float]:
    """`summarize` of scores [., I] of a slice of the users, whose examples have these numbers."""
    found = []
    for first in range(0, len(number_U), BLOCK):
      users = slice(first, first + BLOCK)
      for number, scores_I in zip(number_U[users].tolist(), score(users), strict=True):
        target = self._number[self._source[number]["positive"]]
        others = self._others(number, target)
        found.append((np.sum(scores_I[others] > scores_I[target]), np.sum(scores_I[others] == scores_I[target]), len(others)))
    return summarize(*np.asarray(found).T, k=self.k)

  def _others(self, number: int, target: int) -> np.ndarray:
    """Numbers of the items that a user's next one is compared with."""
    free_I = np.ones(len(self._number), bool)
    free_I[getattr(self._source, "known", lambda _: [])(number)] = False
    free_I[target] = False
    others = np.flatnonzero(free_I)
    if not self.candidates:
      return others
    rng = np.random.default_rng([self.seed, number])
    return rng.choice(others, min(self.candidates, len(others)), replace=False)


def summarize(higher_U: np.ndarray, equal_U: np.ndarray, others_U: np.ndarray, k: int) -> dict[str, float]:
  """Means over users, each with one item that counts: how many others score higher, equally, and how many there are.

  Its place is behind its equals, so that a model which scores all alike is no good; AUC counts them a half. Place 1 of 9 others
  and k = 10: ndcg = recall = mrr = auc = 1; place 3: ndcg 1 / log2(4) = 0.5, recall 1, mrr 1/3, auc 7/9.
  """
  place_U = 1 + higher_U + equal_U
  near_U = place_U <= k
  below_U = others_U - higher_U - 0.5 * equal_U
  values = {
    "ndcg": np.where(near_U, 1 / np.log2(1 + place_U), 0),
    "recall": near_U,
    "mrr": 1 / place_U,
    "auc": below_U[others_U > 0] / others_U[others_U > 0],
  }
  return {name: float(np.mean(value_U)) if len(value_U) else 0.0 for name, value_U in values.items()}


def _unit(x_ND: np.ndarray) -> np.ndarray:
  return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-6)
