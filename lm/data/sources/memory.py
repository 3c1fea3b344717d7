"""Examples given in the config: for tests and notebooks."""

import dataclasses
import hashlib
import json
from typing import Any

from lm.config import ConfigError
from lm.data import answers
from lm.data.rows import parse_json


@dataclasses.dataclass(frozen=True)
class Memory:
  """The same texts, with labels, tags or neither, or the same rows of any columns, in every split."""

  split: str = "train"
  texts: tuple[str, ...] = ()  # one per example
  text_labels: tuple[str, ...] = ()  # one per text; the label set is their sorted set
  rows: tuple[str, ...] = ()  # instead of texts: JSON objects, one per example, such as '{"prompt": "Hi", "response": "Yo"}'
  label_separator: str = ""  # between the labels of a text that has any number of them; unset, it has one
  text_tags: tuple[str, ...] = ()  # one per text: a tag for each of its words, which blanks part; "B-PER I-PER O"

  def __post_init__(self):
    if self.rows and self.texts:
      raise ConfigError("data.rows: no effect beside data.texts; give one of them")
    for i, row in enumerate(self.rows):
      if isinstance(found := parse_json(row), str):
        raise ConfigError(f"data.rows[{i}]={row!r}: {found}")
    if self.text_labels and len(self.text_labels) != len(self.texts):
      raise ConfigError(f"data.text_labels: {len(self.text_labels)} labels for {len(self.texts)} texts")
    if self.text_tags and len(self.text_tags) != len(self.texts):
      raise ConfigError(f"data.text_tags: {len(self.text_tags)} of {len(self.texts)} texts")

    for i, (text, tags) in enumerate(zip(self.texts, self.text_tags, strict=False)):
      if len(text.split()) != len(tags.split()):
        raise ConfigError(f"data.text_tags[{i}]={tags!r}: has {len(tags.split())} tags for {len(text.split())} words")

  @property
  def pairs(self) -> bool:
    """Whether every row has two texts."""
    return bool(self.rows) and all("text_pair" in self[i] for i in range(len(self)))

  @property
  def answers(self) -> tuple[str, ...]:
    """What the answers are that rows have."""
    return answers.kinds(map(self.__getitem__, range(len(self))))

  @property
  def num_hard_negatives(self) -> int:
    """The most texts that a row has beside a pair."""
    return max((len(json.loads(row).get("text_negatives", ())) for row in self.rows), default=0)

  @property
  def tags(self) -> tuple[str, ...]:
    """The set of tags, sorted."""
    return tuple(sorted({tag for tags in self.text_tags for tag in tags.split()}))

  @property
  def labels(self) -> tuple[str, ...]:
    """The label set."""
    return tuple(sorted({label for labels in self.text_labels for label in self._parts(labels)}))

  @property
  def numbers(self) -> tuple[float, ...]:
    """The labels as numbers, each once; () if one is none."""
    try:
      return tuple(sorted({float(label) for label in self.text_labels}))
    except ValueError:
      return ()

  @property
  def choices(self) -> tuple[str, ...]:
    """Numbers of the choices that the first row has, from 0; () without."""
    return tuple(str(i) for i in range(len(json.loads(self.rows[0]).get("choices", ())))) if self.rows else ()

  @property
  def items(self) -> tuple[str, ...]:
    """Texts of the rows that are an item of a catalogue: '{"item": "a film"}'."""
    return tuple(row["item"] for row in map(json.loads, self.rows) if "item" in row)

  def __len__(self) -> int:
    return len(self.rows or self.texts)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if self.rows:
      return json.loads(self.rows[index])
    text = self.texts[index]
    example: dict[str, Any] = {"text": text}
    if self.text_labels:
      parts = self._parts(self.text_labels[index])
      example["label"] = parts if self.label_separator else parts[0]
    return example | ({"tokens": text.split(), "tags": self.text_tags[index].split()} if self.text_tags else {})

  def fingerprint(self) -> str:
    """Hash of texts, labels and tags, or of rows."""
    given = [part for part in (self.text_tags, self.label_separator) if part]
    what = self.rows or (self.texts, self.text_labels, *given)
    return hashlib.sha256(repr(what).encode()).hexdigest()

  def _parts(self, labels: str) -> list[str]:
    return [label for label in labels.split(self.label_separator) if label] if self.label_separator else [labels]
