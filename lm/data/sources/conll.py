"""Tagged sentences in CoNLL files (Tjong Kim Sang and De Meulder 2003): a token with its columns per line, blank lines between.

Columns are apart by tabs or blanks. The sentences are held in memory.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from lm.config import ConfigError
from lm.data import paths
from lm.data.documents import Reading, lines, unreadable
from lm.data.source import SPLITS, check_split, list_files
from lm.data.sources.table import HELD_OUT, SHOWN, cut

SETTINGS = {"train": "path", "validation": "validation", "test": "test"}
DOCSTART = "-DOCSTART-"  # what a line has that parts documents


class Sentence(NamedTuple):
  """Tokens and their tags, and the file and line where they start."""

  tokens: tuple[str, ...]
  tags: tuple[str, ...]
  file: str
  line: int


@dataclasses.dataclass(frozen=True)
class Conll:
  """Sentences as {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "text": "EU rejects", "id": "a.conll:1"}.

  Files are names, folders (all files below), globs or URLs of any suffix, also .gz, .bz2, .xz or .zst. A split without files
  is cut from `path` by the hash of each sentence's tokens, as `Table` does it: equal sentences stand in one split, and those
  that are added move no other. Lines with -DOCSTART- end a sentence and are left out. A sentence is bad if one of its lines
  has more or fewer columns than the first of its file, an empty token or tag, or bytes that are no text.
  """

  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: tuple[str, ...] = ()  # files, folders or globs of the training split, or of all splits
  validation: tuple[str, ...] = ()  # of the validation split; unset is cut from path
  test: tuple[str, ...] = ()  # of the test split; unset is cut from path
  token_column: int = 0  # number of the token's column; 0 is the first, -1 the last
  tag_column: int = -1  # number of the tag's column, as above
  joiner: str = " "  # stands between the tokens in "text"; '' for Chinese characters
  encoding: str = "utf-8"  # one that has ASCII in it
  on_bad_row: str = "error"  # or skip, which leaves sentences with a bad row out and counts them

  def __post_init__(self):
    list_files(self, SETTINGS.values())
    check_split(self.split)
    self._reading("train").check()
    if not self.path:
      raise ConfigError("data.path='': not set; accepted are CoNLL files, folders or globs, as 'a/*.conll'")
    assert self._files["train"], "expand finds some or raises"

  def __len__(self) -> int:
    return len(self._sentences)

  def __getitem__(self, index: int) -> dict[str, Any]:
    tokens, tags, file, line = self._sentences[index]
    return {"tokens": list(tokens), "tags": list(tags), "text": self.joiner.join(tokens), "id": f"{file}:{line}"}

  def locate(self, index: int) -> dict[str, Any]:
    """The file of a sentence and the line where it starts."""
    return {"file": self._sentences[index].file, "line": self._sentences[index].line}

  def fingerprint(self) -> str:
    """Hash of all tokens and tags."""
    return self._fingerprint

  def describe(self) -> str:
    """Sentences of each split, tags with the training tokens that have them, what was left out."""
    splits, skipped = self._loaded
    sizes = ", ".join(f"{name} {len(found):,}" for name, found in splits.items())
    cut_off = [name for name in HELD_OUT if not getattr(self, name)]
    origin = f"; {' and '.join(cut_off)} cut from {', '.join(self.path)} by content" if cut_off else ""
    counts = Counter(tag for sentence in splits["train"] for tag in sentence.tags).most_common()
    shown = ", ".join(f"{tag!r} {count:,}" for tag, count in counts[:SHOWN])
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    said = [f"conll {', '.join(self.path)}: {sizes} sentences{origin}", f"  {len(counts)} tags in train: {shown}{more}"]
    if skipped:
      reasons = ", ".join(f"{count:,} of {file} ({reason})" for (file, reason), count in skipped.most_common())
      said.append(f"  sentences with a bad row left out: {reasons}")
    return "\n".join(said)

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256(json.dumps(self.joiner).encode())
    for sentence in self._sentences:
      digest.update(json.dumps([sentence.tokens, sentence.tags]).encode())
    return digest.hexdigest()

  @property
  def _sentences(self) -> list[Sentence]:
    return self._loaded[0][self.split]

  @functools.cached_property
  def _files(self) -> dict[str, list[str]]:
    """By split; those that have files."""
    patterns = {split: (f"data.{name}", getattr(self, name)) for split, name in SETTINGS.items()}
    return {s: [file for p in found for file in paths.expand(p, name)] for s, (name, found) in patterns.items() if found}

  def _reading(self, split: str) -> Reading:
    return Reading(f"data.{SETTINGS[split]}", encoding=self.encoding, on_bad_row=self.on_bad_row)

  @functools.cached_property
  def _loaded(self) -> tuple[dict[str, list[Sentence]], Counter[tuple[str, str]]]:
    """Sentences by split, and the bad ones left out by (file, reason)."""
    hashes = tuple(paths.content_hash(file) for found in self._files.values() for file in found)
    return _load(dataclasses.replace(self, split="train"), hashes)


@functools.lru_cache(maxsize=4)
def _load(conll: Conll, hashes: tuple[str, ...]) -> tuple[dict[str, list[Sentence]], Counter[tuple[str, str]]]:
  """Reads the files once for all splits. hashes: of the files, so that a changed one is read again."""
  del hashes
  skipped: Counter[tuple[str, str]] = Counter()
  own: dict[str, list[Sentence]] = {}
  for split, files in conll._files.items():
    reading = conll._reading(split)
    own[split] = [sentence for file in files for sentence in _read(conll, file, reading, skipped)]
    if not own[split]:
      raise ConfigError(f"{reading.setting}: no sentence in {', '.join(files)}")
  numbered = [(sentence.tokens, "", i) for i, sentence in enumerate(own["train"])]
  parted = cut(numbered, [name for name in HELD_OUT if name not in own])
  splits = {name: [own["train"][i] for _, _, i in found] for name, found in parted.items()}
  return {name: splits[name] if name in splits else own[name] for name in SPLITS}, skipped


def _read(conll: Conll, file: str, reading: Reading, skipped: Counter[tuple[str, str]]) -> Iterator[Sentence]:
  """The good sentences of a file, in its order."""
  try:
    for rows in _groups(conll, file):
      bad = next(((number, row) for number, row in rows if isinstance(row, str)), None)
      if bad:
        skipped[reading.bad(file, *bad)] += 1
      else:
        tokens, tags = zip(*(row for _, row in rows), strict=True)
        yield Sentence(tokens, tuple(map(sys.intern, tags)), file, rows[0][0])
  except (OSError, EOFError) as error:  # EOFError: a compressed file that ends too early
    raise unreadable(file, reading, error) from error


# The number of a line, and its token and tag or what is wrong with it.
Row = tuple[int, tuple[str, str] | str]


def _groups(conll: Conll, file: str) -> Iterator[list[Row]]:
  """The rows of each sentence."""
  held: list[Row] = []
  width = 0
  for number, _, _, data in itertools.chain(lines(file), [(0, 0, 0, b"")]):
    cells = _split(data, conll.encoding)
    if cells and DOCSTART not in cells:
      if not width and isinstance(cells, list):
        width = len(cells)
        _check_columns(conll, width, f"{file} line {number}")
      held.append((number, _pick(conll, cells, width)))
    elif held:
      yield held
      held = []


def _split(data: bytes, encoding: str) -> list[str] | str:
  """The columns of a line, [] of a blank one, or what is wrong with its bytes. Other kinds of space are part of a token."""
  try:
    text = data.decode(encoding).rstrip(" \t")
  except UnicodeDecodeError as error:
    return f"byte {error.start} is not {encoding} text"
  return text.split("\t") if "\t" in text else [cell for cell in text.split(" ") if cell]


def _check_columns(conll: Conll, width: int, where: str) -> None:
  for name in ("token_column", "tag_column"):
    if not -width <= getattr(conll, name) < width:
      raise ConfigError(f"data.{name}={getattr(conll, name)}: {where} has {width} columns, accepted is {-width} to {width - 1}")
  if conll.token_column % width == conll.tag_column % width:
    raise ConfigError(f"data.tag_column={conll.tag_column}: is the token's column too, of the {width} that {where} has")


def _pick(conll: Conll, cells: list[str] | str, width: int) -> tuple[str, str] | str:
  """Token and tag, or what is wrong."""
  if isinstance(cells, str):
    return cells
  if len(cells) != width:
    return f"{len(cells)} columns where the first line has {width}"
  token, tag = cells[conll.token_column], cells[conll.tag_column]
  return (token, tag) if token and tag else f"an empty {'tag' if token else 'token'}"
