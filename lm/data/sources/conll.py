"""Tagged sentences in CoNLL files (Tjong Kim Sang and De Meulder 2003): a token with its columns per line, blank lines between.

Columns are apart by tabs or blanks. The sentences are held in memory.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator

from lm.config import ConfigError
from lm.data.documents import Reading, lines
from lm.data.sources.tagged import Sentence, Skipped, Tagged

DOCSTART = "-DOCSTART-"  # what a line has that parts documents


@dataclasses.dataclass(frozen=True)
class Conll(Tagged):
  """Sentences as {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "text": "EU rejects", "id": "a.conll:1"}.

  Lines with -DOCSTART- end a sentence and are left out. A sentence is bad if one of its lines has more or fewer columns than
  the first of its file, an empty token or tag, or bytes that are no text.
  """

  token_column: int = 0  # number of the token's column; 0 is the first, -1 the last
  tag_column: int = -1  # number of the tag's column, as above
  joiner: str = " "  # stands between the tokens in "text"; '' for Chinese characters

  @property
  def example(self):
    return "a/*.conll"

  def sentences(self, file: str, reading: Reading, skipped: Skipped) -> Iterator[Sentence]:
    """The good sentences of a file, in its order."""
    for rows in _groups(self, file):
      bad = next(((number, row) for number, row in rows if isinstance(row, str)), None)
      if bad:
        skipped[reading.bad(file, *bad)] += 1
      else:
        tokens, tags = zip(*(row for _, row in rows), strict=True)
        yield Sentence(tokens, tuple(map(sys.intern, tags)), self.joiner.join(tokens), file, rows[0][0])


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
