"""Answers in a text, judged as SQuAD does (Rajpurkar et al. 2016 and 2018): exact match, and F1 over the words of both."""

import dataclasses
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm import files
from lm.data.answers import NONE
from lm.evals.classification import ERRORS_FILE, NUM_ERRORS, write_errors
from lm.evals.evaluator import SplitEvaluator
from lm.report import read_metrics

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")


def normalize(answer: str) -> str:
  """What answers are compared as: small letters, without ASCII punctuation and English articles, one blank between words."""
  return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def score(said: str, answers: Sequence[str]) -> tuple[float, float]:
  """(exact match, F1) of an answer, each with the given one that it fits best; "" says none, and is right where none is."""
  ours = normalize(said).split()
  theirs = [found.split() for found in filter(None, map(normalize, answers))] or [[]]
  return float(ours in theirs), max(_f1(ours, words) for words in theirs)


def _f1(ours: list[str], theirs: list[str]) -> float:
  if not ours or not theirs:
    return float(ours == theirs)
  return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def nearest_sentence(question: str, text: str) -> str:
  """The sentence with the most different words of the question, of equal ones the first: an answer without learning."""
  words = set(normalize(question).split())
  return max(SENTENCE.split(text), key=lambda sentence: len(words & set(normalize(sentence).split())))


@dataclasses.dataclass(frozen=True)
class _Answer:
  """What was said of a question of the split, by its number and id, how sure, and how right it is."""

  number: int
  id: str
  said: str
  probability: float
  exact: float
  f1: float


@dataclasses.dataclass
class SpanQa(SplitEvaluator):
  """Yields loss, accuracy (share of starts and ends that are right, over windows), exact and f1 of the answers, and without
  learning those of the sentence that shares most words with the question, baseline/<split>_sentence_exact and _f1.

  Where questions may have no answer it also yields both for those that have one and those that have none (exact_answered,
  f1_answered, f1_unanswered), baseline/<split>_no_answer_f1 of always saying none, and best_f1, that of the best
  `task.null_threshold` for this split, which the end of a run names.

  When the run ends it writes the answers by the questions' ids to predictions_<name>.json, as SQuAD's own script takes them,
  and the 50 worst to errors.csv. Questions that the data has no answers of are in the former alone.
  """

  headline = "f1"
  measures = True  # also what nobody has answered is answered

  def __post_init__(self):
    super().__post_init__()
    self._latest: tuple[dict[str, float], list[_Answer], dict[str, str], float] | None = None

  def __call__(self, params):
    means, arrays = self.examples(params)
    task, source = self.data.task, self.run.source(self.stream, self.split)
    described = task.describe_predictions(arrays, self.run.tokenizer)
    answers, said, best, sentences = [], {}, [], []
    for number, found in enumerate(described):
      example = source[number]
      found, name = task.quote(found, example), str(example.get("id", number))
      said[name] = found["answer"]
      if "answers" not in example:
        continue
      given = [answer["text"] for answer in example["answers"]]
      answers.append(_Answer(number, name, found["answer"], found["score"], *score(found["answer"], given)))
      best.append((score(next((span["text"] for span in found["n_best"]), ""), given)[1], score("", given)[1]))
      sentences.append(score(nearest_sentence(example["text"], example["text_pair"]), given))
    self._latest = means, answers, said, 0.0
    if not answers:
      return
    mean = lambda numbers: float(np.mean(numbers)) if len(numbers) else 0.0
    values = means | {"exact": mean([a.exact for a in answers]), "f1": mean([a.f1 for a in answers])}
    baselines = {f"sentence_{name}": mean([pair[i] for pair in sentences]) for i, name in enumerate(("exact", "f1"))}
    threshold = 0.0
    if NONE in task.answers:
      has = [bool(source[a.number]["answers"]) for a in answers]
      of = lambda name, kind: mean([getattr(a, name) for a, known in zip(answers, has, strict=True) if known == kind])
      values |= {"exact_answered": of("exact", True), "f1_answered": of("f1", True), "f1_unanswered": of("f1", False)}
      numbers = [a.number for a in answers]
      values["best_f1"], threshold = best_threshold(arrays["null"][numbers] - arrays["score"][numbers, 0], np.asarray(best))
      baselines["no_answer_f1"] = 1 - mean(has)
    values |= {f"baseline/{self.split}_{name}": value for name, value in baselines.items()}
    self._latest = values, answers, said, threshold
    yield from values.items()

  def report(self, workdir, folder):
    assert self._latest is not None, "a run reports after its last evaluation"
    values, answers, said, threshold = self._latest
    file = folder / f"predictions_{self.name}.json"
    files.write_json(file, said)
    written = f"{len(said):,} answers by id: {file}"
    if not answers:
      return f"{self.name}: has no answers to judge by\n{written}"
    curves, parts = read_metrics(workdir), []
    for name, words in (("exact", "exact match"), ("f1", "F1")):
      nearest = values[f"baseline/{self.split}_sentence_{name}"]
      parts.append(f"{words} {values[name]:.3f} ({', '.join([f'nearest sentence {nearest:.3f}', *self.before(curves, name)])})")
    lines = [f"{self.name}: {', '.join(parts)}"]
    if NONE in self.data.task.answers:
      lines.append(
        f"F1 {values['f1_answered']:.3f} where there is an answer, {values['f1_unanswered']:.3f} where there is none"
        f" (always none: {values[f'baseline/{self.split}_no_answer_f1']:.3f} of all);"
        f" task.null_threshold={threshold:.3f} would be best here, {values['best_f1']:.3f}"
      )
    lines.append(written)
    if rows := self._errors(answers):
      write_errors(folder / ERRORS_FILE, self.name, rows)
      wrong = sum(answer.exact < 1 for answer in answers)
      lines.append(f"{wrong:,} of {len(answers):,} are no exact match; the {len(rows)} worst: {folder / ERRORS_FILE}")
    return "\n".join(lines)

  def _errors(self, answers: list[_Answer]) -> list[dict[str, Any]]:
    """The answers of lowest F1, of equal ones the surest first."""
    source, rows = self.run.source(self.stream, self.split), []
    wrong = sorted((a for a in answers if a.exact < 1), key=lambda answer: (answer.f1, -answer.probability))
    for answer in wrong[:NUM_ERRORS]:
      given = dict.fromkeys(found["text"] for found in source[answer.number]["answers"])
      split = f"{self.name} ({len(wrong[:NUM_ERRORS])} of {len(wrong)} wrong)"
      found = {"answers": " | ".join(given), "prediction": answer.said}
      rows.append(
        {"split": split, **self.quote(answer.number)}
        | found
        | {"f1": f"{answer.f1:.4f}", "probability": f"{answer.probability:.4f}"}
      )
    return rows


def best_threshold(above_R: np.ndarray, f1_R2: np.ndarray) -> tuple[float, float]:
  """(F1, threshold) of the threshold with the best mean F1: a span is said where `above` is not greater, else no answer.

  above_R: what no answer scores above the best span. f1_R2: of that span, and of no answer.
  """
  order = np.argsort(above_R, kind="stable")
  totals = f1_R2[:, 1].sum() + np.cumsum(f1_R2[order, 0] - f1_R2[order, 1])
  # Between equal ones no threshold can part; below all of them stands the one that always says none.
  last = np.append(above_R[order][1:] != above_R[order][:-1], True)
  choices = [(f1_R2[:, 1].sum(), float(above_R.min()) - 1), *zip(totals[last], above_R[order][last].tolist(), strict=True)]
  total, threshold = max(choices, key=lambda choice: choice[0])
  return float(total) / len(above_R), threshold
