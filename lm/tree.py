"""Parameter trees as flat names: selection by first-match patterns, splitting, merging, counting, hashing."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from lm.plug import ConfigError

Tree = dict[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
  """{"a": {"b": x}} -> {"a/b": x}, in sorted order of names."""
  return dict(sorted(traverse_util.flatten_dict(tree, sep="/").items()))


def unflatten(flat: Mapping[str, Any]) -> Tree:
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def map_named(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
  """Maps function(name, leaf) over the tree."""
  return unflatten({name: function(name, leaf) for name, leaf in flatten(tree).items()})


def split(tree: Tree, chosen: Callable[[str], bool]) -> tuple[Tree, Tree]:
  """Two trees with the leaves whose name is chosen, and the others."""
  flat = flatten(tree)
  picked = {name: leaf for name, leaf in flat.items() if chosen(name)}
  rest = {name: leaf for name, leaf in flat.items() if name not in picked}
  return unflatten(picked), unflatten(rest)


def merge(*trees: Tree) -> Tree:
  """One tree of all leaves; a name may stand in one tree only."""
  flat: dict[str, Any] = {}
  for tree in trees:
    part = flatten(tree)
    assert not flat.keys() & part.keys(), f"in two trees: {sorted(flat.keys() & part.keys())}"
    flat |= part
  return unflatten(flat)


def first_match(rules: Sequence[tuple[str, Any]], names: Iterable[str], setting: str) -> dict[str, Any]:
  """The value of the first rule (pattern, value) whose regular expression matches the whole name, for every name.

  Raises:
    ValueError: a name that no rule matches, or a rule that matches no name (a typo would otherwise freeze or train
      everything without a word).
  """
  names = list(names)
  for pattern, _ in rules:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise ValueError(f"{setting}: pattern {pattern!r} matches none of the parameters: {', '.join(names)}")
  found = {}
  for name in names:
    values = [value for pattern, value in rules if re.fullmatch(pattern, name)]
    if not values:
      raise ValueError(f"{setting}: no pattern matches parameter {name!r}; end the list with '.*'")
    found[name] = values[0]
  return found


def check_pattern(pattern: str, setting: str) -> None:
  """Raises ConfigError if a pattern of that setting, "config.sharding='...'", is no regular expression."""
  try:
    re.compile(pattern)
  except re.error as error:
    raise ConfigError(f"{setting}: {pattern!r} is no regular expression: {error}") from error


def leaf_name(path: Sequence[Any]) -> str:
  """The '/'-joined dict keys of a jax key path; other kinds of keys (tuples, attributes) are left out."""
  return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def count(tree: Any) -> int:
  """Number of scalars in all leaves (works on abstract leaves)."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def sha256(tree: Tree) -> str | None:
  """Hash over sorted names: name, dtype, shape, C-order little-endian bytes; None if a leaf is not fully addressable."""
  digest = hashlib.sha256()
  for name, leaf in flatten(tree).items():
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return None
    array = np.asarray(leaf)
    digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
  return digest.hexdigest()
