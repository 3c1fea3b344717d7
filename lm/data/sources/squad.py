"""Questions with answers in a text, in the JSON of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016 and 2018).

{"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "answers": [{"text": ...,
"answer_start": in characters}]}]}]}]}; in 2.0 a question with "is_impossible": true has no answer. They are held in memory.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

from lm.config import ConfigError
from lm.data import answers, paths
from lm.data.documents import Reading, unreadable
from lm.data.rows import Skipped
from lm.data.source import check_split, list_files
from lm.data.splits import SETTINGS, describe_cut, hash_examples, left_out, own_files, part

UNSURE = "answer_start_is_first_match"  # of an answer whose place was looked for, where its text stands more than once


class Question(NamedTuple):
  """An example as `Squad` gives it, the title of its article, and its file."""

  example: dict[str, Any]
  title: str
  file: str


@dataclasses.dataclass(frozen=True)
class Squad:
  """Questions as {"text": question, "text_pair": context, "answers": [{"text": "Rome", "start": 12}, ...], "id": "5733be28"}.

  "answers" is [] where the context has none, and is not there where the file does not say, as in a test set. An answer that
  the file marks with `answer_start_is_first_match` has "unsure" too. A split without files is cut from `path` by the hash of
  each article's title, as `Table` cuts texts: all questions on an article stand in one split.

  A question is bad if it has no id or the id of another one, no text, no context, neither an answer nor is_impossible, or an
  answer that is not what stands at its place.
  """

  pairs: ClassVar[bool] = True
  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: tuple[str, ...] = ()  # files, folders or globs of the training split, or of all splits
  validation: tuple[str, ...] = ()  # of the validation split; unset is cut from path
  test: tuple[str, ...] = ()  # of the test split; unset is cut from path
  on_bad_row: str = "error"  # or skip, which leaves bad questions out and counts them

  def __post_init__(self):
    list_files(self, SETTINGS.values())
    check_split(self.split)
    self._reading("train").check()
    if not self.path:
      raise ConfigError("data.path='': not set; accepted are files, folders or globs of questions, as 'train-v1.1.json'")
    assert self._files["train"], "expand finds some or raises"

  def __len__(self) -> int:
    return len(self._questions)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._questions[index].example

  @property
  def answers(self) -> tuple[str, ...]:
    """What the answers of the training split are."""
    return answers.kinds(question.example for question in self._loaded[0]["train"])

  def locate(self, index: int) -> dict[str, Any]:
    """The file of a question, and its id."""
    return {"file": self._questions[index].file, "id": self._questions[index].example["id"]}

  def fingerprint(self) -> str:
    """Hash of all questions."""
    return self._fingerprint

  def describe(self) -> str:
    """Questions and articles of each split, those without an answer, answers whose place is not sure, what was left out."""
    splits, skipped = self._loaded
    articles = lambda found: len({question.title for question in found})
    sizes = ", ".join(f"{name} {len(found):,} on {articles(found):,}" for name, found in splits.items())
    given = [question.example["answers"] for question in splits["train"] if "answers" in question.example]
    lines = [
      f"squad {', '.join(self.path)}: questions of {sizes} articles{describe_cut(self, 'article')}",
      f"  in train {sum(not found for found in given):,} have no answer, the others {sum(map(len, given)):,} answers",
    ]
    if unsure := sum("unsure" in answer for found in given for answer in found):
      lines.append(f"  {unsure:,} of them may stand elsewhere ({UNSURE}); learned where a question has no other")
    return "\n".join([*lines, *left_out(skipped, "bad questions left out")])

  @functools.cached_property
  def _fingerprint(self) -> str:
    return hash_examples(question.example for question in self._questions)

  @property
  def _questions(self) -> list[Question]:
    return self._loaded[0][self.split]

  @functools.cached_property
  def _files(self) -> dict[str, list[str]]:
    """By split; those that have files."""
    return own_files(self)

  def _reading(self, split: str) -> Reading:
    return Reading(f"data.{SETTINGS[split]}", on_bad_row=self.on_bad_row)

  @functools.cached_property
  def _loaded(self) -> tuple[dict[str, list[Question]], Skipped]:
    """Questions by split, and the bad ones left out."""
    hashes = tuple(paths.content_hash(file) for found in self._files.values() for file in found)
    return _load(dataclasses.replace(self, split="train"), hashes)


@functools.lru_cache(maxsize=4)
def _load(source: Squad, hashes: tuple[str, ...]) -> tuple[dict[str, list[Question]], Skipped]:
  """Reads the files once for all splits. hashes: of the files, so that a changed one is read again."""
  del hashes
  skipped: Skipped = Counter()
  own: dict[str, list[Question]] = {}
  for split, files in source._files.items():
    reading, ids = source._reading(split), set()
    own[split] = [question for file in files for question in _questions(file, reading, skipped, ids)]
    if not own[split]:
      raise ConfigError(f"{reading.setting}: no question in {', '.join(files)}")
  return part(own, lambda question: (question.title,)), skipped


def _questions(file: str, reading: Reading, skipped: Skipped, ids: set[str]) -> Iterator[Question]:
  """The good questions of a file, in its order. ids: of those before it, to which its own are added.

  Raises:
    ConfigError: a file that is not laid out as SQuAD is, or a bad question, unless such are skipped.
  """
  for number, article in enumerate(_parts(_read(file, reading), "data", file, reading)):
    title = _text(article, "title") or f"{file}:{number}"
    for paragraph in _parts(article, "paragraphs", file, reading):
      for row in _parts(paragraph, "qas", file, reading):
        found = _example(row, _text(paragraph, "context"), ids)
        if isinstance(found, str):
          skipped[reading.bad(file, _text(row, "id") or "without an id", found, "question")] += 1
        else:
          ids.add(found["id"])
          yield Question(found, title, file)


def _read(file: str, reading: Reading) -> Any:
  try:
    with paths.opened_text(file, "utf-8-sig") as text:
      return json.load(text)
  except (OSError, EOFError) as error:  # EOFError: a compressed file that ends too early
    raise unreadable(file, reading, error) from error
  except (ValueError, RecursionError) as error:
    raise ConfigError(f"{reading.setting}: {file}: bad JSON ({error})") from error


def _parts(value: Any, name: str, file: str, reading: Reading) -> list[dict[str, Any]]:
  """The objects that SQuAD lists there."""
  found = value.get(name) if isinstance(value, dict) else None
  if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
    layout = '{"data": [{"paragraphs": [{"context": ..., "qas": [...]}]}]}'
    raise ConfigError(f"{reading.setting}: {file}: {name!r} is no list of objects; accepted is JSON as SQuAD has it, {layout}")
  return found


def _example(row: Mapping[str, Any], context: str, ids: set[str]) -> dict[str, Any] | str:
  """What `Squad` gives, or what is wrong."""
  question, own_id, given = _text(row, "question"), _text(row, "id"), row.get("answers")
  if not question or not own_id or not context:
    return f"{'context' if not context else 'question' if own_id else 'id'} is empty or no text"
  if own_id in ids:
    return "another question has its id"
  example = {"text": question, "text_pair": context, "id": own_id}
  if given is None and not row.get("is_impossible"):
    return example
  if bool(given) == bool(row.get("is_impossible")):
    return "has answers and is_impossible" if given else "has neither an answer nor is_impossible"
  found = [_answer(answer, context) for answer in given or []]
  wrong = next((answer for answer in found if isinstance(answer, str)), None)
  return wrong or example | {"answers": found}


def _answer(row: Any, context: str) -> dict[str, Any] | str:
  """{"text", "start"} with "unsure" where it is, or what is wrong."""
  row = row if isinstance(row, dict) else {"text": row}
  text, start = _text(row, "text"), row.get("answer_start")
  if not text or type(start) is not int:
    return f'an answer is {json.dumps(row)[:80]}, expected {{"text": ..., "answer_start": number}}'
  if start < 0 or context[start : start + len(text)] != text:
    return f"answer {text!r} is not what stands at {start} ({context[max(start, 0) : max(start, 0) + len(text)]!r})"
  return {"text": text, "start": start} | ({"unsure": True} if row.get(UNSURE) else {})


def _text(value: Mapping[str, Any], name: str) -> str:
  """A text of an object, "" where it is none or blank."""
  found = value.get(name)
  return found if isinstance(found, str) and found.strip() else ""
