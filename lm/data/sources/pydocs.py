"""The documentation inside every Python: `pydoc_data.topics` and the docstrings of the standard library. No download.

About 2.2 MB of English on CPython 3.11. Distributions strip modules, so counts and fingerprint belong to an interpreter.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

from lm.config import ConfigError
from lm.data.paths import cache_folder
from lm.data.source import SPLITS, check_split

EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
SHARES = {"validation": 5, "test": 5}  # percent of documents, by hash of their content
SHINGLE = 8  # words
MAX_OVERLAP = 0.2  # of a held-out document's shingles that may stand in train
MIN_LABELLED = 60  # training documents of a module that is a label
CACHE_FORMAT = 1  # raise it when `_read` would find other documents in the same files


@dataclasses.dataclass(frozen=True)
class Pydocs:
  """Documents as {"text"}; with label="module", docstrings only, as {"text", "label"} with their top-level module."""

  split: str = "train"
  label: str = ""  # 'module': docstrings only, labelled with their top-level module

  def __post_init__(self):
    if self.label not in ("", "module"):
      raise ConfigError(f"data.label={self.label!r}: accepted are '' and 'module'")
    check_split(self.split)

  @property
  def labels(self) -> tuple[str, ...]:
    """Modules with enough training documents, sorted; () without labels."""
    return _labels() if self.label else ()

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> dict[str, str]:
    text, module = self._examples[index]
    return {"text": text, "label": module} if self.label else {"text": text}

  def fingerprint(self) -> str:
    """Hash of all examples."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256(self.label.encode())
    for text, module in self._examples:
      digest.update(f"{module}\0{text}\0".encode())
    return digest.hexdigest()

  def describe(self) -> str:
    """One line of counts: what each split holds, and what was dropped."""
    splits, dropped = _splits()
    counts = ", ".join(f"{name} {len(documents):,}" for name, documents in splits.items())
    size = sum(len(text.encode()) for documents in splits.values() for text, _ in documents)
    line = f"pydocs: {counts} documents, {size / 1e6:.2f} MB; {dropped} held-out ones dropped as near-copies of train"
    if self.label:
      unlabelled = sum(module not in _labels() for documents in splits.values() for _, module in documents)
      line += f"; {len(_labels())} modules are labels, {unlabelled:,} documents of others dropped"
    return line

  @property
  def _examples(self) -> list[tuple[str, str]]:
    return _labelled(self.split) if self.label else _splits()[0][self.split]


@functools.cache
def _documents() -> list[tuple[str, str]]:
  """What `_read` finds, kept in a file named after this Python and its library, because parsing takes seconds."""
  root = Path(sysconfig.get_path("stdlib"))
  files = _files(root)
  stats = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]
  key = hashlib.sha256(json.dumps([CACHE_FORMAT, sys.version, stats]).encode()).hexdigest()[:24]
  cache = cache_folder() / f"pydocs-{key}.json"
  with contextlib.suppress(OSError, ValueError):  # not there, or not whole
    return [(text, module) for text, module in json.loads(cache.read_bytes())]
  documents = _read(root, files)
  if not documents:
    raise ConfigError(f"data 'pydocs': this Python's library at {root} has no docstrings")
  with contextlib.suppress(OSError):  # nowhere to write: the next process parses again
    _write_atomically(cache, json.dumps(documents))
  return documents


def _files(root: Path) -> list[Path]:
  """Every .py file below root outside EXCLUDED folders, sorted."""
  found = []
  for folder, subfolders, names in os.walk(root):
    subfolders[:] = [name for name in subfolders if name not in EXCLUDED]
    found += [Path(folder, name) for name in names if name.endswith(".py")]
  return sorted(found)


def _read(root: Path, files: list[Path]) -> list[tuple[str, str]]:
  """(text, top-level module or "") without exact duplicates: topics first, then docstrings in the order of files."""
  found: dict[str, str] = {}
  try:
    from pydoc_data.topics import topics
  except ImportError:  # stripped by some distributions
    topics = {}
  for name in sorted(topics):
    found.setdefault(topics[name].strip(), "")
  for path in files:
    module = path.relative_to(root).parts[0].removesuffix(".py")
    if module != "pydoc_data":
      for text in _docstrings(path):
        found.setdefault(text, module)
  return list(found.items())


def _write_atomically(path: Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
    file.write(text)
  os.replace(file.name, path)


def _docstrings(path: Path) -> list[str]:
  try:
    module = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):  # a few files of lib2to3 and the like are bad on purpose
    return []
  kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  texts = [ast.get_docstring(node, clean=False) for node in ast.walk(module) if isinstance(node, kinds)]
  return [text for text in (inspect.cleandoc(text).strip() for text in texts if text) if _encodes(text)]


def _encodes(text: str) -> bool:
  return bool(text) and not any("\ud800" <= c <= "\udfff" for c in text)


@functools.cache
def _splits() -> tuple[dict[str, list[tuple[str, str]]], int]:
  """Documents by split, and how many held-out ones were dropped because they overlap with train."""
  splits: dict[str, list[tuple[str, str]]] = {name: [] for name in SPLITS}
  for text, module in _documents():
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % 100
    split = "validation" if number < SHARES["validation"] else "test" if number < sum(SHARES.values()) else "train"
    splits[split].append((text, module))
  seen = {shingle for text, _ in splits["train"] for shingle in _shingles(text)}
  dropped = 0
  for name in SHARES:
    kept = [(text, module) for text, module in splits[name] if _overlap(text, seen) < MAX_OVERLAP]
    dropped += len(splits[name]) - len(kept)
    splits[name] = kept
  return splits, dropped


def _shingles(text: str) -> list[tuple[str, ...]]:
  words = text.split()
  return [tuple(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))]


def _overlap(text: str, seen: set[tuple[str, ...]]) -> float:
  shingles = _shingles(text)
  return sum(shingle in seen for shingle in shingles) / len(shingles)


@functools.cache
def _labels() -> tuple[str, ...]:
  counts = Counter(module for _, module in _splits()[0]["train"] if module)
  return tuple(sorted(module for module, count in counts.items() if count >= MIN_LABELLED))


@functools.cache
def _labelled(split: str) -> list[tuple[str, str]]:
  labels = set(_labels())
  return [(text, module) for text, module in _splits()[0][split] if module in labels]
