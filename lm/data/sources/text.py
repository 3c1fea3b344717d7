"""Text for pretraining: plain files with a document per line, per paragraph (blank lines between) or per file, and tables.

Only places are kept in memory, so that a corpus may be larger than that; the cells of csv and tsv are held.
"""

import dataclasses
import functools
import hashlib
import json
import os
from typing import Any, ClassVar

from lm.config import ConfigError
from lm.data import paths
from lm.data.documents import Documents, Reading
from lm.data.source import check_split, list_files
from lm.data.splits import SETTINGS


@dataclasses.dataclass(frozen=True)
class Text:
  """Each split has files of its own: names, folders (all files below), globs or URLs, also .gz, .bz2, .xz or .zst.

  jsonl, csv, tsv and parquet are read as rows with a text in the column `text`, any other file as plain text. Blank
  documents of plain text are left out; bytes that are no text, bad JSON and rows without text are bad rows.

  `Text(path=("a.txt",), unit="line")[0]` -> {"text": first line}.
  """

  PATHS: ClassVar = ("path", "validation", "test")

  split: str = "train"
  path: tuple[str, ...] = ()  # files, folders or globs of the training split
  validation: tuple[str, ...] = ()  # of the validation split
  test: tuple[str, ...] = ()  # of the test split
  unit: str = "line"  # what one document of plain text is: line, paragraph or file
  text: str = "text"  # column of jsonl, csv, tsv and parquet files
  encoding: str = "utf-8"  # of all but parquet files; one that has ASCII in it
  on_bad_row: str = "error"  # or skip, which leaves bad rows out and counts them

  def __post_init__(self):
    list_files(self, SETTINGS.values())
    check_split(self.split)
    self._reading.check()
    if not self._patterns:
      raise ConfigError(f"data.{self._setting}='': not set; the {self.split} split takes files of its own, as 'a/*.txt'")
    assert self._files, "expand finds some or raises"

  def __len__(self) -> int:
    return len(self._documents)

  def __getitem__(self, index: int) -> dict[str, str]:
    return {"text": self._documents[index]}

  def fingerprint(self) -> str:
    """Hash of the files' contents, in their order, and of how they are read."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    kinds = [[paths.kind(file), os.path.splitext(file)[1].lower(), paths.content_hash(file)] for file in self._files]
    how = [self.unit, self.text, self.encoding, self.on_bad_row]
    return hashlib.sha256(json.dumps([how, kinds]).encode()).hexdigest()

  @property
  def _setting(self) -> str:
    return SETTINGS[self.split]

  @property
  def _patterns(self) -> tuple[str, ...]:
    return getattr(self, self._setting)

  @property
  def _reading(self) -> Reading:
    return Reading(f"data.{self._setting}", self.unit, self.text, self.encoding, self.on_bad_row)

  @functools.cached_property
  def _files(self) -> list[str]:
    return [file for pattern in self._patterns for file in paths.expand(pattern, f"data.{self._setting}")]

  @functools.cached_property
  def _documents(self) -> Any:
    return Documents(self._files, self._reading)
