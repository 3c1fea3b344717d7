"""Plain text files: a document per line, per paragraph (blank lines between), or per file."""

import dataclasses
import functools
import glob
import hashlib
import os
import re
from pathlib import Path

from lm.config import ConfigError
from lm.data.source import SPLITS

UNITS = ("line", "paragraph", "file")


@dataclasses.dataclass(frozen=True)
class Text:
  """UTF-8 text; each split has files of its own. Blank documents are left out.

  `Text(path="a.txt", unit="line")[0]` -> {"text": first line}.
  """

  split: str = "train"
  path: str = ""  # file or glob of the training split
  validation: str = ""  # file or glob of the validation split
  test: str = ""  # file or glob of the test split
  unit: str = "line"  # what one document is: line, paragraph or file

  def __post_init__(self):
    if self.unit not in UNITS:
      raise ConfigError(f"data.unit={self.unit!r}: accepted are {', '.join(UNITS)}")
    if self.split not in SPLITS:
      raise ConfigError(f"data.split={self.split!r}: accepted are {', '.join(SPLITS)}")
    if not self._pattern:
      raise ConfigError(f"data.{self._setting}='': not set; the {self.split} split takes a file or a glob of its own")
    if not self._files:
      raise ConfigError(f"data.{self._setting}={self._pattern!r}: no such file; accepted are a file or a glob like 'a/*.txt'")

  def __len__(self) -> int:
    return len(self._documents)

  def __getitem__(self, index: int) -> dict[str, str]:
    return {"text": self._documents[index]}

  def fingerprint(self) -> str:
    """Hash of all documents."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256()
    for text in self._documents:
      encoded = text.encode()
      digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.hexdigest()

  @property
  def _setting(self) -> str:
    return "path" if self.split == "train" else self.split

  @property
  def _pattern(self) -> str:
    return getattr(self, self._setting)

  @functools.cached_property
  def _files(self) -> list[str]:
    if os.path.isfile(self._pattern):  # its name may hold a bracket or a star
      return [self._pattern]
    return sorted(filter(os.path.isfile, glob.glob(self._pattern, recursive=True)))

  @functools.cached_property
  def _documents(self) -> list[str]:
    found: list[str] = []
    for file in self._files:
      try:
        text = Path(file).read_text(encoding="utf-8-sig")
      except UnicodeDecodeError as error:
        raise ConfigError(f"data.{self._setting}: {file!r} is not UTF-8 at byte {error.start}") from error
      except OSError as error:
        raise ConfigError(f"data.{self._setting}: {file!r} cannot be read: {error.strerror}") from error
      found += [part for part in _split(text, self.unit) if part.strip()]
    return found


def _split(text: str, unit: str) -> list[str]:
  if unit == "line":
    return text.split("\n")  # not splitlines: a form feed or U+2028 is part of its line
  return re.split(r"\n\s*\n", text) if unit == "paragraph" else [text]
