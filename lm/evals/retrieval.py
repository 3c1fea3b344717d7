"""Whether a text finds what belongs to it among all texts of a split: recall, nDCG, reciprocal rank and average precision."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm import metrics
from lm.evals.classification import ERRORS_FILE, NUM_ERRORS, write_errors
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics

SHOWN = ("recall@1", "recall@10", "ndcg@10", "mrr@10", "map")
SCORES = 1 << 24  # products that exist at a time


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Questions and documents of a split, each different text once.

  sequence_Q: the example of a question. relevant_QN, allowed_QN: whether a document belongs to it, and whether it is looked at.
  """

  sequence_Q: np.ndarray
  question_QD: np.ndarray
  document_ND: np.ndarray
  relevant_QN: np.ndarray
  allowed_QN: np.ndarray


@dataclasses.dataclass
class Retrieval(SplitEvaluator):
  """Yields the task's loss and accuracy, and recall@1, recall@10, ndcg@10, mrr@10 and map, as `metrics.ranking` has them.

  Of pairs the documents are all second texts of the split and what does not answer, and relevant are those that stand beside
  the question in any row. Of labelled texts they are the others of the split, and relevant are those of the label. Of single
  texts without labels nothing is relevant, and there are loss and accuracy only. With matryoshka_dims the same of the first 64
  dims is called dim64_ndcg@10. Documents are ranked by exact products on the host, equal ones in their order.

  When the run ends it tells these beside step 0, and writes the 50 questions whose first relevant document is farthest down to
  errors.csv: where they stand, their texts and its rank.
  """

  headline = "loss"

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], np.ndarray, np.ndarray] | None = None

  def __call__(self, params):
    values, arrays = self.predictions(params, "question", "groups", "embedding", "candidates")
    corpus = make_corpus(*arrays, pair=self.data.task.pair)
    ranks_Q = np.zeros(0)
    if corpus.relevant_QN.any():
      for dim in self.data.task.matryoshka_dims:
        found, _ = self._rank(corpus, dim)
        values |= {f"dim{dim}_{name}": value for name, value in found.items()}
      found, ranks_Q = self._rank(corpus)
      values |= found
    self._latest = values, corpus.sequence_Q[corpus.relevant_QN.any(1)], ranks_Q
    yield from values.items()

  def _rank(self, corpus: Corpus, dim: int | None = None) -> tuple[dict[str, float], np.ndarray]:
    """The metrics of the first dims, and the rank of the first relevant document of every question that has one."""
    scaled = _unit if self.data.task.normalize else lambda x: x
    question_QD, document_ND = scaled(corpus.question_QD[:, :dim]), scaled(corpus.document_ND[:, :dim])
    asked = np.flatnonzero(corpus.relevant_QN.any(1))
    sums, first = {}, []
    for part in np.array_split(asked, -(-len(asked) * len(document_ND) // SCORES)):
      score_QN = np.where(corpus.allowed_QN[part], question_QD[part] @ document_ND.T, -np.inf)
      order_QN = np.argsort(-score_QN, axis=1, kind="stable")
      hit_QN = np.take_along_axis(corpus.relevant_QN[part], order_QN, axis=1)
      metrics.add(sums, {name: value_Q.sum() for name, value_Q in metrics.ranking(hit_QN).items()})
      first.append(hit_QN.argmax(1) + 1)
    return {name: total / len(asked) for name, total in sums.items()}, np.concatenate(first)

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, sequence_Q, ranks_Q = self._latest
    curves, parts = read_metrics(workdir), []
    for name in (name for name in (*SHOWN, "loss") if name in values):
      parts.append(" ".join([f"{name} {values[name]:.3f}", *(f"({before})" for before in self.before(curves, name))]))
    lines = [f"{self.name}: {', '.join(parts)}"]
    if rows := list(self._errors(sequence_Q, ranks_Q)):
      write_errors(folder / ERRORS_FILE, self.name, rows)
      lines.append(f"the {len(rows)} questions whose first right text is farthest down: {folder / ERRORS_FILE}")
    return "\n".join(lines)

  def _errors(self, sequence_Q: np.ndarray, ranks_Q: np.ndarray) -> Iterator[dict[str, Any]]:
    """The questions that another text answers first, the worst first."""
    wrong = np.flatnonzero(ranks_Q > 1)
    worst = wrong[np.argsort(-ranks_Q[wrong], kind="stable")][:NUM_ERRORS]
    for i in worst:
      split = f"{self.name} ({len(worst)} of {len(wrong)} wrong)"
      yield {"split": split, **self.quote(int(sequence_Q[i])), "rank": int(ranks_Q[i])}


def make_corpus(
  sequence_R: np.ndarray,
  question_R: np.ndarray,
  groups_RC: np.ndarray,
  embedding_RD: np.ndarray,
  candidates_RCD: np.ndarray,
  *,
  pair: bool,
) -> Corpus:
  """Questions and documents of the rows of a split, as task `embed` predicts them."""
  (R, C), filled = groups_RC.shape, groups_RC.ravel() > 0
  row_M = np.repeat(np.arange(R), C)[filled]  # of each candidate that is there
  group_M = groups_RC.ravel()[filled]
  text_M = group_M if pair else question_R[row_M]
  document_N, first_N, of_M = np.unique(text_M, return_index=True, return_inverse=True)
  question_Q, asks_Q, of_R = np.unique(question_R, return_index=True, return_inverse=True)
  relevant_QN = np.zeros((len(question_Q), len(document_N)), bool)
  if pair:
    answers = np.arange(R * C)[filled] % C == 0
    relevant_QN[of_R[row_M[answers]], of_M[answers]] = True
    allowed_QN = np.ones_like(relevant_QN)
  else:
    allowed_QN = document_N[None, :] != question_Q[:, None]
    relevant_QN = allowed_QN & (group_M[first_N][None, :] == groups_RC[asks_Q, :1])
  vectors_MD = candidates_RCD.reshape(R * C, -1)[filled]
  return Corpus(sequence_R[asks_Q], embedding_RD[asks_Q], vectors_MD[first_N], relevant_QN, allowed_QN)


def _unit(x_ND: np.ndarray) -> np.ndarray:
  return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
