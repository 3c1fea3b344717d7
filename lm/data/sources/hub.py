"""Text in a dataset repository of the Hugging Face hub, or in a folder laid out like one: parquet or jsonl, with its card.

Only the files that hold the documents asked for are fetched, into the hub's own cache, at one commit.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm import hub
from lm.config import ConfigError
from lm.data import paths
from lm.data.documents import Documents, Reading
from lm.data.source import check_split

KINDS = (".parquet", ".jsonl", ".json")  # .json holds an object per line too
# Where the card names no files, those of a split have one of these words in their path.
WORDS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class Hub:
  """Documents as {"text"}. `hf:HuggingFaceFW/fineweb-edu:sample-10BT` is short for hub(repo=..., config='sample-10BT').

  Which files a split has is what the card (README.md) says of the config; without a card the config is a folder, and the
  split a word in the file's path; where no path has such a word, all are of the training split.
  """

  split: str = "train"
  repo: str = ""  # id such as HuggingFaceFW/fineweb-edu, or a folder of that layout
  config: str = ""  # part of the repository; unset is the only or the default one
  revision: str = ""  # branch, tag or commit of the repository; unset is main
  text: str = "text"  # column
  max_documents: int = 0  # of the training split, from its front; 0 takes all
  held_out: int = 0  # documents at the front of the training split that are the validation split instead
  on_bad_row: str = "error"  # or skip, which leaves rows without text out and counts them

  def __post_init__(self):
    check_split(self.split)
    for name in ("max_documents", "held_out"):
      if getattr(self, name) < 0:
        raise ConfigError(f"data.{name}={getattr(self, name)}: accepted are 0 and numbers above")
    if not self._is_local and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
      raise ConfigError(f"data.repo={self.repo!r}: accepted are a folder, or an id such as HuggingFaceFW/fineweb-edu")
    if self.revision and self._is_local:
      raise ConfigError(f"data.revision={self.revision!r}: no effect; {self.repo} is a folder")
    self._reading.check()

  def __len__(self) -> int:
    return max(len(self._documents) - self._first, 0)

  def __getitem__(self, index: int) -> dict[str, str]:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return {"text": self._documents[index + self._first]}

  def fingerprint(self) -> str:
    """Hash of the commit (of a folder: of its files' contents), of the files of the split, and of what is read of them."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    files = self._files
    state: Any = [self.repo, self._listing.revision]
    if self._is_local:
      state = [paths.content_hash(str(self._folder / name)) for name in files]
    what = [state, files, self.text, self.on_bad_row, self._first, self._limit]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()

  def describe(self) -> str:
    """One line: which files at which commit."""
    commit = f" at {self._listing.revision[:12]}" if self._listing.revision else ""
    limit = f", the first {self.max_documents:,} documents" if self.max_documents else ""
    held_out = f", {self.held_out:,} before them for validation" if self.held_out else ""
    return f"hub {self.repo}{self.config and f' ({self.config})'}{commit}: {len(self._files)} files{limit}{held_out}"

  @property
  def _is_local(self) -> bool:
    return bool(self.repo) and self._folder.is_dir()

  @property
  def _folder(self) -> Path:
    return Path(self.repo).expanduser()

  @property
  def _reading(self) -> Reading:
    return Reading("data.repo", column=self.text, on_bad_row=self.on_bad_row)

  @property
  def _first(self) -> int:
    """Documents of the files that are in front of this split's."""
    return self.held_out if self.split == "train" else 0

  @property
  def _limit(self) -> int:
    """Documents of the files that are read, from their front; 0 is all."""
    if self.split == "train":
      return self.max_documents and self.max_documents + self.held_out
    return self.held_out if self.split == "validation" else 0

  @functools.cached_property
  def _listing(self) -> "_Listing":
    return _list_folder(self._folder) if self._is_local else _list_repository(self.repo, self.revision)

  @functools.cached_property
  def _files(self) -> list[str]:
    own = "train" if self.split == "validation" and self.held_out else self.split
    splits = _splits(self._listing, self.repo, self.config)
    if not splits.get(own):
      hint = "; data.held_out=1000 takes the first documents of train" if own == "validation" else ""
      raise ConfigError(f"data.repo={self.repo!r}: has no files of the split {own!r}, but of {', '.join(splits)}{hint}")
    return splits[own]

  @functools.cached_property
  def _documents(self) -> Documents:
    return Documents(self._fetched(), self._reading, self._limit)

  def _fetched(self) -> Iterator[str]:
    """Paths of the files, each fetched when it is asked for."""
    for name in self._files:
      if self._is_local:
        yield str(self._folder / name)
      else:
        yield _fetch(self.repo, name, self._listing.revision)


@dataclasses.dataclass(frozen=True)
class _Listing:
  """What a repository holds. configs: as its card has them, [{"config_name": ..., "data_files": ...}]. revision: its commit."""

  files: list[str]
  configs: list[Mapping[str, Any]]
  revision: str = ""


def _list_folder(folder: Path) -> _Listing:
  from huggingface_hub import metadata_load

  card = folder / "README.md"
  found = [str(Path(path).relative_to(folder)) for path in paths.expand(str(folder), "data.repo")]
  return _Listing(found, ((metadata_load(card) if card.is_file() else None) or {}).get("configs") or [])


def _list_repository(repo: str, revision: str) -> _Listing:
  import huggingface_hub

  info = _ask(repo, lambda: huggingface_hub.HfApi().dataset_info(repo, revision=revision or None))
  configs = (info.card_data.to_dict() if info.card_data else {}).get("configs") or []
  return _Listing(sorted(sibling.rfilename for sibling in info.siblings or ()), configs, info.sha)


def _fetch(repo: str, name: str, revision: str) -> str:
  import huggingface_hub

  return _ask(repo, lambda: huggingface_hub.hf_hub_download(repo, name, repo_type="dataset", revision=revision))


def _ask(repo: str, request: Any) -> Any:
  return hub.ask(f"data.repo={repo!r}: no such folder, and the hub does not give it", request)


def _splits(listing: _Listing, repo: str, config: str) -> dict[str, list[str]]:
  """Files by split."""
  data = [name for name in listing.files if paths.kind(name) in KINDS]
  by_name = {str(each.get("config_name", "default")): each for each in listing.configs if each.get("data_files")}
  if not by_name:
    return _by_words(data, repo, config)
  default = next((name for name, each in by_name.items() if each.get("default")), "default" if "default" in by_name else "")
  name = config or (default if len(by_name) > 1 else next(iter(by_name)))
  if name not in by_name:
    raise ConfigError(f"data.config={config!r}: of {repo} accepted are {', '.join(by_name)}")
  found: dict[str, list[str]] = {}
  wanted = by_name[name]["data_files"]
  for part in wanted if isinstance(wanted, list) else [wanted]:
    split, patterns = (part.get("split", "train"), part["path"]) if isinstance(part, Mapping) else ("train", part)
    matches = lambda file, patterns=patterns: any(fnmatch.fnmatch(file, p) for p in _listed(patterns))
    found.setdefault({"valid": "validation", "dev": "validation"}.get(split, split), []).extend(filter(matches, data))
  return {split: files for split, files in found.items() if files}


def _by_words(data: list[str], repo: str, config: str) -> dict[str, list[str]]:
  inside = [name for name in data if config in ("", *Path(name).parts[:-1])]
  if not inside:
    folders = sorted({Path(name).parts[0] for name in data if "/" in name})
    kinds = f"no {', '.join(KINDS)} files"
    raise ConfigError(
      f"data.config={config!r}: of {repo} accepted are its folders {', '.join(folders)}" if data
      else f"data.repo={repo!r}: has {kinds}"
    )  # fmt: skip
  has = lambda name, words: re.search(rf"(?<![a-z])({'|'.join(words)})(?![a-z])", name.lower())
  found = {split: [name for name in inside if has(name, words)] for split, words in WORDS.items()}
  return {split: files for split, files in found.items() if files} or {"train": inside}


def _listed(value: Any) -> list[str]:
  return value if isinstance(value, list) else [value]
