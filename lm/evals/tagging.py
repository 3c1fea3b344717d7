"""Entities found in a split: precision, recall and F1 as seqeval and CoNLL's script count them, in all and by type."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data import tagging
from lm.data.loader import aligned
from lm.data.tagging import Span
from lm.evals.classification import ERRORS_FILE, NUM_ERRORS, write_errors
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics
from lm.tasks.tag import UNSEEN


@dataclasses.dataclass(frozen=True)
class Scores:
  """How many entities are right, were said, and are there."""

  right: int
  said: int
  there: int

  @property
  def precision(self) -> float:
    """Share of what was said; 0 where nothing was."""
    return self.right / self.said if self.said else 0.0

  @property
  def recall(self) -> float:
    """Share of what is there; 0 where nothing is."""
    return self.right / self.there if self.there else 0.0

  @property
  def f1(self) -> float:
    """Harmonic mean of both, 2 right / (said + there)."""
    return 2 * self.right / (self.said + self.there) if self.said + self.there else 0.0


def score(there: Iterable[Sequence[Span]], said: Iterable[Sequence[Span]]) -> dict[str, Scores]:
  """By type, and "" for all: an entity is right where its type and both of its ends are.

  there, said: the entities of each sentence.
  """
  counts: dict[str, Counter[str]] = {name: Counter() for name in ("right", "said", "there")}
  for theirs, ours in zip(there, said, strict=True):
    for name, spans in (("right", set(theirs) & set(ours)), ("said", ours), ("there", theirs)):
      counts[name].update(kind for kind, _, _ in spans)
  kinds = sorted({kind for counter in counts.values() for kind in counter})
  of = lambda kind: Scores(*(counts[name][kind] for name in ("right", "said", "there")))
  return {"": Scores(*(counts[name].total() for name in ("right", "said", "there"))), **{kind: of(kind) for kind in kinds}}


@dataclasses.dataclass(frozen=True)
class _Sentence:
  """Number in the split, the tags it has, those that the model gave, and how many words the tokenizer has nothing for."""

  number: int
  tags: list[str]
  said: list[str]
  unseen: int


@dataclasses.dataclass
class Tagging(SplitEvaluator):
  """Yields loss, accuracy (share of words whose tag is right), precision, recall, f1 of all entities, f1_<type> of each type.

  And what always saying O would reach: baseline/<split>_all_o_accuracy, and baseline/<split>_all_o_f1, which is 0. Of plain
  tags every word counts as an entity, so that f1 is the accuracy, and the baseline is the training split's commonest tag:
  baseline/<split>_majority_accuracy and _f1.

  Words that the tokenizer has nothing for are O. When the run ends it tells the scores by type and how many those were, and
  writes the 50 sentences with the most wrong entities to errors.csv.
  """

  strict: bool = False  # counts an entity of the model only if its tags keep the task's scheme, as seqeval's strict mode

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], list[_Sentence]] | None = None
    if self.strict and not self.data.task.has_entities:
      raise ConfigError(f"evaluators: strict=True: no effect on task.scheme={self.data.task.scheme!r}")

  headline = "f1"

  def __call__(self, params):
    means, arrays = self.examples(params)
    source = self.run.source(self.stream, self.split)
    sentences = [self._sentence(source[number], number, tag_W) for number, tag_W in enumerate(arrays["tag"])]
    pairs = [pair for sentence in sentences for pair in zip(sentence.tags, sentence.said, strict=True)]
    share = lambda right: sum(right) / max(len(pairs), 1)
    values = {"loss": means["loss"], "accuracy": share(tag == said for tag, said in pairs)}
    scores = self._scores(sentences)
    values |= {name: getattr(scores[""], name) for name in ("precision", "recall", "f1")}
    values |= {f"f1_{kind.replace('/', '_')}": found.f1 for kind, found in scores.items() if kind}
    values |= {f"baseline/{self.split}_{name}": value for name, value in self._baseline([tag for tag, _ in pairs]).items()}
    self._latest = values, sentences
    yield from values.items()

  def _baseline(self, tags: list[str]) -> dict[str, float]:
    """What always saying one tag reaches on these."""
    task = self.data.task
    if task.has_entities:
      return {"all_o_accuracy": tags.count(tagging.OUTSIDE) / max(len(tags), 1), "all_o_f1": 0.0}
    counts = np.bincount(self.run.load(self.stream, "train").store.values("tag"))
    share = tags.count(task.classes[counts[1:].argmax()]) / max(len(tags), 1)
    return {"majority_accuracy": share, "majority_f1": share}

  def _sentence(self, example: dict[str, Any], number: int, tag_W: np.ndarray) -> _Sentence:
    task = self.data.task
    tags = task.rewrite(example["tags"], example["tokens"])
    tag_W = np.pad(tag_W[: len(tags)], (0, max(len(tags) - len(tag_W), 0)), constant_values=UNSEEN)
    return _Sentence(number, tags, task.name_tags(tag_W), int(np.sum(tag_W == UNSEEN)))

  def _scores(self, sentences: list[_Sentence]) -> dict[str, Scores]:
    return score(*zip(*map(self._entities, sentences), strict=True))

  def _entities(self, sentence: _Sentence) -> tuple[list[Span], list[Span]]:
    """Those that are there, those that the model said."""
    task = self.data.task
    if not task.has_entities:
      of_words = lambda tags: [(tag, i, i + 1) for i, tag in enumerate(tags) if tag]
      return of_words(sentence.tags), of_words(sentence.said)
    return tagging.read(sentence.tags), tagging.read(sentence.said, task.scheme if self.strict else "")

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, sentences = self._latest
    curves, parts = read_metrics(workdir), []
    baseline, always = ("all_o", "O") if self.data.task.has_entities else ("majority", "the commonest")
    for name, words in (("f1", "F1"), ("accuracy", "accuracy of tags")):
      beside = [f"always {always} {values[f'baseline/{self.split}_{baseline}_{name}']:.3f}", *self.before(curves, name)]
      parts.append(f"{words} {values[name]:.3f} ({', '.join(beside)})")
    lines = [f"{self.name}: {', '.join(parts)}"]
    if unseen := sum(sentence.unseen for sentence in sentences):
      total = sum(len(sentence.tags) for sentence in sentences)
      cut = sum(sentence.unseen > 0 for sentence in sentences)
      lines.append(f"{unseen:,} of {total:,} words, in {cut:,} sentences, are nothing to the tokenizer and count as O")
    scores = self._scores(sentences)
    cells = [
      [kind or "all", f"{s.precision:.3f}", f"{s.recall:.3f}", f"{s.f1:.3f}", f"{s.there:,}"] for kind, s in scores.items()
    ]
    table = aligned([["type", "precision", "recall", "F1", "there"], *cells[1:], cells[0]])
    lines += [f"  {line}" for line in table.splitlines()]
    if rows := self._errors(sentences):
      write_errors(folder / ERRORS_FILE, self.name, rows)
      lines.append(f"the {len(rows)} sentences with the most wrong: {folder / ERRORS_FILE}")
    return "\n".join(lines)

  def _errors(self, sentences: list[_Sentence]) -> list[dict[str, Any]]:
    """The sentences with the most entities missed or made up, the worst first."""
    source, rows = self.run.source(self.stream, self.split), []
    both = [tuple(map(set, self._entities(sentence))) for sentence in sentences]
    wrong = [i for i in np.argsort([-len(there ^ said) for there, said in both], kind="stable") if both[i][0] != both[i][1]]
    for i in wrong[:NUM_ERRORS]:
      (there, said), example = both[i], source[sentences[i].number]
      words = lambda spans, tokens=example["tokens"]: "; ".join(
        f"{kind}: {' '.join(tokens[first:stop])}" for kind, first, stop in sorted(spans, key=lambda span: span[1:])
      )
      split = f"{self.name} ({len(wrong[:NUM_ERRORS])} of {len(wrong)} wrong)"
      found = {"text": example["text"], "missed": words(there - said), "made_up": words(said - there)}
      rows.append({"split": split, **self.locate(sentences[i].number), **found})
    return rows
