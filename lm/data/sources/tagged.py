"""Sources of tagged sentences: files of any layout to tokens and tags, splits by content, bad sentences counted.

The sentences are held in memory. A source says how it reads a file.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from lm.config import ConfigError
from lm.data import paths
from lm.data.documents import Reading, unreadable
from lm.data.rows import Skipped
from lm.data.source import check_split, list_files
from lm.data.sources.table import SHOWN
from lm.data.splits import SETTINGS, describe_cut, left_out, own_files, part


class Sentence(NamedTuple):
  """Tokens, their tags, the text they stand in, and the file and line where they start."""

  tokens: tuple[str, ...]
  tags: tuple[str, ...]
  text: str
  file: str
  line: int


@dataclasses.dataclass(frozen=True)
class Tagged:
  """Base of sources of tagged sentences.

  Files are names, folders (all files below), globs or URLs of any suffix, also .gz, .bz2, .xz or .zst. A split without files
  is cut from `path` by the hash of each sentence's tokens, as `Table` does it: equal sentences stand in one split, and those
  that are added move no other.
  """

  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: tuple[str, ...] = ()  # files, folders or globs of the training split, or of all splits
  validation: tuple[str, ...] = ()  # of the validation split; unset is cut from path
  test: tuple[str, ...] = ()  # of the test split; unset is cut from path
  encoding: str = "utf-8"  # one that has ASCII in it
  on_bad_row: str = "error"  # or skip, which leaves sentences with a bad row out and counts them

  def __post_init__(self):
    list_files(self, SETTINGS.values())
    check_split(self.split)
    self._reading("train").check()
    if not self.path:
      raise ConfigError(f"data.path='': not set; accepted are files, folders or globs of sentences, as {self.example!r}")
    assert self._files["train"], "expand finds some or raises"

  @property
  def example(self) -> str:
    """What `path` may be."""
    raise NotImplementedError

  def sentences(self, file: str, reading: Reading, skipped: Skipped) -> Iterator[Sentence]:
    """The good sentences of a file, in its order; the others are counted by `reading.bad`, which may refuse them."""
    raise NotImplementedError

  def __len__(self) -> int:
    return len(self._sentences)

  def __getitem__(self, index: int) -> dict[str, Any]:
    tokens, tags, text, file, line = self._sentences[index]
    return {"tokens": list(tokens), "tags": list(tags), "text": text, "id": f"{file}:{line}"}

  @property
  def tags(self) -> tuple[str, ...]:
    """Those of the training split, sorted."""
    return tuple(sorted({tag for sentence in self._loaded[0]["train"] for tag in sentence.tags}))

  def locate(self, index: int) -> dict[str, Any]:
    """The file of a sentence and the line where it starts."""
    return {"file": self._sentences[index].file, "line": self._sentences[index].line}

  def fingerprint(self) -> str:
    """Hash of all texts, tokens and tags."""
    return self._fingerprint

  def describe(self) -> str:
    """Sentences of each split, tags with the training tokens that have them, what was left out."""
    splits, skipped = self._loaded
    sizes = ", ".join(f"{name} {len(found):,}" for name, found in splits.items())
    counts = Counter(tag for sentence in splits["train"] for tag in sentence.tags).most_common()
    shown = ", ".join(f"{tag!r} {count:,}" for tag, count in counts[:SHOWN])
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    said = [f"{type(self).__name__.lower()} {', '.join(self.path)}: {sizes} sentences{describe_cut(self)}"]
    said.append(f"  {len(counts)} tags in train: {shown}{more}")
    return "\n".join([*said, *left_out(skipped, "sentences with a bad row left out")])

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256()
    for sentence in self._sentences:
      digest.update(json.dumps([sentence.text, sentence.tokens, sentence.tags]).encode())
    return digest.hexdigest()

  @property
  def _sentences(self) -> list[Sentence]:
    return self._loaded[0][self.split]

  @functools.cached_property
  def _files(self) -> dict[str, list[str]]:
    """By split; those that have files."""
    return own_files(self)

  def _reading(self, split: str) -> Reading:
    return Reading(f"data.{SETTINGS[split]}", encoding=self.encoding, on_bad_row=self.on_bad_row)

  @functools.cached_property
  def _loaded(self) -> tuple[dict[str, list[Sentence]], Skipped]:
    """Sentences by split, and the bad ones left out."""
    hashes = tuple(paths.content_hash(file) for found in self._files.values() for file in found)
    return _load(dataclasses.replace(self, split="train"), hashes)


@functools.lru_cache(maxsize=4)
def _load(source: Tagged, hashes: tuple[str, ...]) -> tuple[dict[str, list[Sentence]], Skipped]:
  """Reads the files once for all splits. hashes: of the files, so that a changed one is read again."""
  del hashes
  skipped: Skipped = Counter()
  own: dict[str, list[Sentence]] = {}
  for split, files in source._files.items():
    reading = source._reading(split)
    own[split] = [sentence for file in files for sentence in _read(source, file, reading, skipped)]
    if not own[split]:
      raise ConfigError(f"{reading.setting}: no sentence in {', '.join(files)}")
  return part(own, lambda sentence: sentence.tokens), skipped


def _read(source: Tagged, file: str, reading: Reading, skipped: Skipped) -> Iterator[Sentence]:
  try:
    yield from source.sentences(file, reading, skipped)
  except (OSError, EOFError) as error:  # EOFError: a compressed file that ends too early
    raise unreadable(file, reading, error) from error
