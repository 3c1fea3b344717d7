"""The splits of a source of files: some have files of their own, the others are cut from the training files by content."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lm.data import paths
from lm.data.rows import Skipped
from lm.data.source import SPLITS

SETTINGS = {"train": "path", "validation": "validation", "test": "test"}  # by split, the field that names its files
BUCKETS = 10  # into which the hash of its text puts a row. One bucket is a held-out split, the others are train:
HELD_OUT = {"validation": 2, "test": 7}

Example = tuple[tuple[str, ...], str, int]  # texts, label ("" without one), line of the file
T = TypeVar("T")


def own_files(source: Any) -> dict[str, list[str]]:
  """Files by split, of those that have any; the source's fields hold names, folders and globs."""
  patterns = {split: (f"data.{name}", getattr(source, name)) for split, name in SETTINGS.items()}
  return {s: [file for p in found for file in paths.expand(p, name)] for s, (name, found) in patterns.items() if found}


def cut(
  examples: list[Example], held_out: list[str], classes: Callable[[Example], Iterable[str]] = lambda example: (example[1],)
) -> dict[str, list[Example]]:
  """Examples of train and of the held-out splits named, by the rule that `Table` states; a split is ordered by hash.

  Of [(("a",), "x", 2), (("b",), "y", 3), ...] a text whose hash is 2 modulo 10 goes to validation, 7 to test. classes: of an
  example, the labels that train must have.
  """
  rows: dict[tuple[str, ...], list[Example]] = {}
  for example in examples:
    rows.setdefault(example[0], []).append(example)
  labels = {texts: {label for example in found for label in classes(example)} for texts, found in rows.items()}
  digest = {texts: hashlib.sha256("\0".join(texts).encode()).digest() for texts in labels}
  split_of = {HELD_OUT[name]: name for name in held_out}
  splits: dict[str, list[tuple[str, ...]]] = {"train": [], **{name: [] for name in held_out}}
  for texts in sorted(labels, key=lambda texts: (digest[texts], texts)):
    splits[split_of.get(int.from_bytes(digest[texts]) % BUCKETS, "train")].append(texts)
  counts = Counter(label for texts in splits["train"] for label in labels[texts])
  for name in held_out:
    found, splits[name] = splits[name], []
    for texts in found:
      known = counts.keys() >= labels[texts]
      splits[name if known else "train"].append(texts)
      counts.update(() if known else labels[texts])
  for name in (name for name in held_out if not splits[name]):
    spare = next((texts for texts in splits["train"] if all(counts[label] > 1 for label in labels[texts])), None)
    if spare is not None and len(splits["train"]) > 1:
      splits["train"].remove(spare)
      splits[name].append(spare)
      counts.subtract(labels[spare])
  by_hash = lambda found: sorted(found, key=lambda texts: (digest[texts], texts))
  return {name: [row for texts in by_hash(found) for row in sorted(rows[texts])] for name, found in splits.items()}


def part(own: Mapping[str, Sequence[T]], texts: Callable[[T], tuple[str, ...]]) -> dict[str, list[T]]:
  """All splits, from the examples of those that have files of their own; others are `cut` from train by these texts."""
  numbered: list[Example] = [(texts(example), "", i) for i, example in enumerate(own["train"])]
  parted = cut(numbered, [name for name in HELD_OUT if name not in own])
  found = {name: [own["train"][i] for _, _, i in kept] for name, kept in parted.items()}
  return {name: found[name] if name in found else list(own[name]) for name in SPLITS}


def describe_cut(source: Any, by: str = "content") -> str:
  """ "; validation and test cut from a.csv by content", or "" where all splits have files."""
  names = [name for name in HELD_OUT if not getattr(source, name)]
  path = source.path if isinstance(source.path, str) else ", ".join(source.path)
  return f"; {' and '.join(names)} cut from {path} by {by}" if names else ""


def left_out(skipped: Skipped, words: str) -> list[str]:
  """A line of what was left out and why; none where nothing was."""
  reasons = ", ".join(f"{count:,} of {file} ({reason})" for (file, reason), count in skipped.most_common())
  return [f"  {words}: {reasons}"] if skipped else []


def hash_examples(examples: Iterable[Mapping[str, Any]]) -> str:
  """Hash of all of them, in their order."""
  digest = hashlib.sha256()
  for example in examples:
    digest.update(json.dumps(example).encode() + b"\n")
  return digest.hexdigest()
