"""Plain text files: a document per line, per paragraph (blank lines between), or per file."""

import dataclasses
import functools
import glob
import hashlib
import re
from pathlib import Path

from lm.config import ConfigError

UNITS = ("line", "paragraph", "file")


@dataclasses.dataclass(frozen=True)
class Text:
  """UTF-8 text. path: file or glob of the training split; validation and test have files of their own.

  unit: what one document is; blank documents are left out. `Text(path="a.txt", unit="line")[0]` -> {"text": first line}.
  """

  split: str = "train"
  path: str = ""
  validation: str = ""
  test: str = ""
  unit: str = "line"

  def __post_init__(self):
    if self.unit not in UNITS:
      raise ConfigError(f"data.unit={self.unit!r}: accepted are {', '.join(UNITS)}")
    setting = "path" if self.split == "train" else self.split
    if not self._files:
      pattern = getattr(self, setting)
      raise ConfigError(f"data.{setting}={pattern!r}: " + ("no such file" if pattern else "not set"))

  def __len__(self) -> int:
    return len(self._documents)

  def __getitem__(self, index: int) -> dict[str, str]:
    return {"text": self._documents[index]}

  def fingerprint(self) -> str:
    """Hash of all documents."""
    digest = hashlib.sha256()
    for text in self._documents:
      digest.update(text.encode() + b"\0")
    return digest.hexdigest()

  @property
  def _files(self) -> list[str]:
    pattern = self.path if self.split == "train" else getattr(self, self.split)
    return sorted(glob.glob(pattern)) if pattern else []

  @functools.cached_property
  def _documents(self) -> list[str]:
    found: list[str] = []
    for file in self._files:
      try:
        text = Path(file).read_text(encoding="utf-8-sig")
      except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}") from error
      parts = {"line": text.splitlines, "paragraph": lambda t=text: re.split(r"\n\s*\n", t), "file": lambda t=text: [t]}
      found += [part for part in parts[self.unit]() if part.strip()]
    return found
