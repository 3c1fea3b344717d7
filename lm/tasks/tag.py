"""A tag for every word, as named entities have (Tjong Kim Sang and De Meulder 2003), read at the first piece of each."""

import dataclasses
import functools

import numpy as np

from lm.config import ConfigError
from lm.data import tagging
from lm.data.store import WINDOW
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.text_rows import PLACE, in_order, lay_out
from lm.tasks.windowed import Windowed

PLAIN = "plain"
UNSEEN = -1  # in the place of a class: of a word that the tokenizer has nothing for


@dataclasses.dataclass(frozen=True)
class Tag(Windowed):
  """Sequence labelling.

  `prepare({"tokens": ["New", "York"], "tags": ["B-LOC", "I-LOC"], "text": "New York"})` stores tokens [cls sep new yo rk],
  words [0 0 1 2 0] and tags [0 0 2 3 0]: at the first piece of each word its number and its class, both from 1. Other pieces,
  and the words of an example without tags, have no weight. `corrupt` puts sep behind the text.

  A longer text than a row holds is a sequence per window. A word has its number and its tag in one of them, that where it
  has most context: it is learned and said once.

  Tags in any of BIO, IOB and BIOES are read as entities and written in the scheme that is learned. A text without tokens
  is parted as `words` says.
  """

  tags: tuple[str, ...] = ()  # those of the data; empty takes those of the source's training split
  scheme: str = "bio"  # how the model writes entities: bio or bioes; plain learns tags that are no entities as they are
  outputs: tuple[str, ...] = ()  # the tags in the order of the head's outputs, of one made elsewhere; empty takes the scheme's
  words: str = "word"  # how a text without tokens is parted: word (signs and Chinese characters alone), space or character

  prepare_fields = ("tags", "scheme", "outputs", "words", "window", "stride")
  targets = "tags"
  evaluators = (("tagging", "validation"), ("tagging", "test"))
  head = "tag"
  num_beside = 2  # cls and sep

  def __post_init__(self):
    super().__post_init__()
    if self.scheme not in (*tagging.SCHEMES, PLAIN):
      raise ValueError(f"task.scheme={self.scheme!r}: accepted are {', '.join(tagging.SCHEMES)}, {PLAIN}")
    if self.words not in tagging.WORDS:
      raise ValueError(f"task.words={self.words!r}: accepted are {', '.join(tagging.WORDS)}")
    for tag in self.tags if self.has_entities else ():
      self._check(tag)

  @property
  def has_entities(self) -> bool:
    """Whether tags write entities."""
    return self.scheme != PLAIN

  @property
  def classes(self) -> tuple[str, ...]:
    """The tags that the model tells apart: all of the scheme's, O first, or those of the data, unless `outputs` says."""
    return self.outputs or _classes(self.tags, self.scheme)

  @classmethod
  def of_outputs(cls, outputs: tuple[str, ...]) -> "Tag":
    """The task of a head that has these tags in this order: entities where all are tags of one of the schemes."""
    prefixes = {tag.partition("-")[0] for tag in outputs if tag != tagging.OUTSIDE}
    is_entities = tagging.OUTSIDE in outputs and not any(map(tagging.check, outputs))
    scheme = "bio" if prefixes <= set(tagging.SCHEMES["bio"]) else "bioes"
    return cls(tags=tuple(sorted(outputs)), scheme=scheme if is_entities else PLAIN, outputs=outputs)

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("tagger", num_outputs=len(self.classes))

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "word": Field(("T",)), "tag": Field(("T",)), "place": PLACE}

  def prepare(self, example, tok):
    ids, word = tagging.align(example["text"], self._places(example), tok)
    tag = np.zeros_like(word)
    if "tags" in example:
      number = {name: i for i, name in enumerate(self.classes, 1)}
      if unknown := next((name for name in self.rewrite(example["tags"], example["tokens"]) if name not in number), ""):
        raise ConfigError(f"tag {unknown!r}: is none of task.outputs={','.join(self.outputs)}")
      of_word = np.asarray([0, *(number[name] for name in self.rewrite(example["tags"], example["tokens"]))], np.int32)
      tag = of_word[word]
    found = []
    for i, (start, stop, first, end) in enumerate(self.windows(len(ids), self.num_beside)):
      tokens, place = lay_out(tok, ids[start:stop])  # of a single text: [cls sep], then the text in its order
      own = lambda values: np.pad(values[first:end], (2 + first - start, stop - end))  # noqa: B023 - called in this turn
      found.append({"tokens": tokens, "place": place, "word": own(word), "tag": own(tag), WINDOW: np.int32(i)})
    return found

  def rewrite(self, tags, tokens):
    """A sentence's tags in the scheme that is learned.

    Raises:
      ConfigError: not a tag per token, or one that the training split does not have.
    """
    if len(tags) != len(tokens):
      raise ConfigError(f"tags: {len(tags)} for {len(tokens)} tokens")
    if not self.has_entities:
      if unknown := next((tag for tag in tags if tag not in self.tags), ""):
        raise ConfigError(f"tag {unknown!r}: is not among the {len(self.tags)} tags of training: {', '.join(self.tags)[:200]}")
      return list(tags)
    known = tagging.types(self.tags)
    for tag in set(tags):
      self._check(tag)
      if tag != tagging.OUTSIDE and tag.partition("-")[2] not in known:
        raise ConfigError(f"tag {tag!r}: its type is none of training: {', '.join(known)[:200]}")
    return tagging.write(tagging.read(tags), len(tags), self.scheme)

  def corrupt(self, rows, noise, tok, width):
    tokens_RT, word_RT, tag_RT = in_order(rows, "tokens", "word", "tag")
    return {
      "tokens": tokens_RT,
      "word": word_RT,
      "label": np.maximum(tag_RT - 1, 0),
      "weights": (tag_RT > 0).astype(np.float32),
    }

  def show_target(self, row):
    return " ".join(self.classes[label] for label in row["label"][row["weights"] > 0])

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return forward.token_sums(forward(batch, rng), batch["label"], batch["weights"], batch, rng)

  def predict(self, forward, batch):
    scores_BTN = forward.probabilities(forward(batch), batch)
    return {"tag": scores_BTN.argmax(-1), "score": scores_BTN.max(-1), "word": batch["word"]}

  def join(self, arrays, owner_N):
    """The class of every word and its probability, [R, W]: UNSEEN and 0 where there is no word, or none was seen."""
    row, at = np.nonzero(arrays["word"])
    place = owner_N[row], arrays["word"][row, at] - 1
    shape = int(owner_N[-1]) + 1, int(arrays["word"].max())
    found = {"tag": np.full(shape, UNSEEN, np.int32), "score": np.zeros(shape, np.float32)}
    for name, values in found.items():
      values[place] = arrays[name][row, at]
    return found

  def describe_predictions(self, arrays, tok):
    return [self._describe(tag_W, score_W) for tag_W, score_W in zip(arrays["tag"], arrays["score"], strict=True)]

  def name_tags(self, tag_W):
    """The names of classes; of an unseen word O, or "" of plain tags."""
    unseen = tagging.OUTSIDE if self.has_entities else ""
    return [self.classes[tag] if tag != UNSEEN else unseen for tag in tag_W]

  def quote(self, described, example):
    """Tags for all words, of which those that were not seen are O ("" of plain tags); the texts of words and entities."""
    text, places = example["text"], self._places(example)
    unseen = tagging.OUTSIDE if self.has_entities else ""
    found = {
      "words": [text[start:stop] for start, stop in places],
      "tags": described["tags"] + [unseen] * (len(places) - len(described["tags"])),
    }
    if self.has_entities:
      found["entities"] = []
      for entity in described["entities"]:
        first, stop = entity["words"]
        start, end = places[first][0], places[stop - 1][1]
        found["entities"].append({"text": text[start:end], "start": start, "stop": end} | entity)
    return found

  def _describe(self, tag_W, score_W):
    """Tags up to the last word that was seen, and what they write."""
    count = int(np.flatnonzero(tag_W != UNSEEN).max(initial=-1)) + 1
    tags = self.name_tags(tag_W[:count])
    if not self.has_entities:
      return {"tags": tags}
    scores = np.where(tag_W == UNSEEN, 1, score_W)  # that it is O, or cannot be anything else, is sure
    entities = [
      {"type": kind, "words": [first, stop], "score": float(scores[first:stop].mean())}
      for kind, first, stop in tagging.read(tags)
    ]
    return {"tags": tags, "entities": entities}

  def _places(self, example):
    """Where the words of an example stand in its text."""
    if "tokens" not in example:
      return tagging.split_words(example["text"], self.words)
    places = tagging.find_words(example["text"], example["tokens"])
    if places is None:
      raise ConfigError(f"tokens: do not stand in the text in their order: {' '.join(example['tokens'])[:80]!r}")
    return places

  def _check(self, tag):
    if wrong := tagging.check(tag):
      raise ConfigError(f"tag {tag!r}: {wrong}; task.scheme={PLAIN} learns any tags as they are")


@functools.lru_cache
def _classes(tags: tuple[str, ...], scheme: str) -> tuple[str, ...]:
  return tagging.classes(tagging.types(tags), scheme) if scheme != PLAIN else tags
