"""Sentences with spans of entities, a JSON object per line, as CLUENER2020 is published (Xu et al. 2020).

{"text": "浙商银行的叶老桂", "label": {"company": {"浙商银行": [[0, 3]]}, "name": {"叶老桂": [[5, 7]]}}}: by type and
surface, where it stands in characters, the last one included.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from lm.config import ConfigError
from lm.data import tagging
from lm.data.documents import Reading, lines
from lm.data.rows import parse_json
from lm.data.sources.tagged import Sentence, Skipped, Tagged


@dataclasses.dataclass(frozen=True)
class Spans(Tagged):
  """Sentences as {"tokens": ["浙", "商"], "tags": ["B-company", "I-company"], "text": "浙商", "id": "train.json:1"}.

  Tags are BIO. A sentence is bad if its JSON or its text is, if a span is not where its surface stands, if two spans
  overlap (nested ones too: a word has one tag), or if one starts or ends inside a word.
  """

  text: str = "text"  # name of the text
  label: str = "label"  # name of the spans; a line without it has none
  words: str = "character"  # what has a tag: character, but for space; word (signs and Chinese characters alone), or space

  def __post_init__(self):
    super().__post_init__()
    if self.words not in tagging.WORDS:
      raise ConfigError(f"data.words={self.words!r}: accepted are {', '.join(tagging.WORDS)}")

  @property
  def example(self):
    return "train.json"

  def sentences(self, file: str, reading: Reading, skipped: Skipped) -> Iterator[Sentence]:
    """The good sentences of a file, in its order."""
    for number, _, _, data in lines(file):
      try:
        line = data.decode(self.encoding)
      except UnicodeDecodeError as error:
        skipped[reading.bad(file, number, f"byte {error.start} is not {self.encoding} text")] += 1
        continue
      if not line.strip():
        continue
      cells = parse_json(line)
      found = cells if isinstance(cells, str) else self._tag(cells)
      if isinstance(found, str):
        skipped[reading.bad(file, number, found)] += 1
      else:
        yield Sentence(*found, file, number)

  def _tag(self, cells: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], str] | str:
    """Tokens, tags and text, or what is wrong."""
    text = cells.get(self.text)
    if not isinstance(text, str) or not text.strip():
      return f"{self.text!r} is empty or no text"
    places = tagging.split_words(text, self.words)
    starts, stops = {start: i for i, (start, _) in enumerate(places)}, {stop: i + 1 for i, (_, stop) in enumerate(places)}
    found = _spans(cells.get(self.label) or {}, text)
    if isinstance(found, str):
      return f"{self.label!r}: {found}"
    end, spans = 0, []
    for start, stop, kind in sorted(found):
      if start < end:
        return f"{self.label!r}: {kind} {text[start:stop]!r} overlaps the span before it"
      if start not in starts or stop not in stops:
        return f"{self.label!r}: {kind} {text[start:stop]!r} starts or ends inside a word"
      spans.append((kind, starts[start], stops[stop]))
      end = stop
    return tuple(text[start:stop] for start, stop in places), tuple(tagging.write(spans, len(places), "bio")), text


def _spans(label: Any, text: str) -> list[tuple[int, int, str]] | str:
  """(start, stop, type) of all spans, stop behind the last character; or what is wrong."""
  found = []
  if not isinstance(label, dict) or not all(isinstance(surfaces, dict) for surfaces in label.values()):
    return "is not of the form {type: {surface: [[start, last], ...]}}"
  for kind, surfaces in label.items():
    for surface, places in surfaces.items():
      if not isinstance(places, list) or not places or not all(map(_is_place, places)):
        return f"{kind} {surface!r} has {json.dumps(places)[:60]}, expected [[start, last], ...]"
      for start, last in places:
        if not kind or last < start or text[start : last + 1] != surface:
          return f"{kind} {surface!r} is not what stands at [{start}, {last}] ({text[max(start, 0) : last + 1]!r})"
        found.append((start, last + 1, kind))
  return found


def _is_place(place: Any) -> bool:
  """Whether it is [start, last]; true is no number."""
  return isinstance(place, list) and len(place) == 2 and all(type(value) is int and value >= 0 for value in place)
