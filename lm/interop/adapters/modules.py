"""Formats of methods whose leaves stand beside linear modules: LoRA and what follows it, (IA)^3.

A kernel of ours may be a part of a fused one in transformers (GPT-2's c_attn). Reading, each part takes its share of the
outputs and all of the ranks; writing, ranks stand side by side and outputs in blocks.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from lm import plug
from lm.config import ConfigError
from lm.interop import weights
from lm.interop.adapters.format import ADAPTER, Arrays, Format, Settings, Trained
from lm.interop.tensors import Tensor
from lm.interop.weights import Checkpoint, Leaf
from lm.models.family import Family

GROWING = ("rank", "outputs")  # dims of which every part of a fused kernel has its own
Index = tuple[int, ...]  # of the layer, and of the expert
Modules = dict[str, Arrays]  # leaves [x, y], as ours are, of one layer, by the module's name in transformers


@dataclasses.dataclass(frozen=True)
class Stored:
  """A leaf beside a kernel; a file holds its transpose.

  name: behind that of the module. dims: what its two last ones count: inputs, outputs or rank, "" is 1. neutral: what a
  module has that is not adapted; norms: it is those of its kernel's columns. vector: the file leaves out the dim of 1.
  """

  name: str
  dims: tuple[str, str]
  neutral: float = 0.0
  norms: bool = False
  vector: bool = False

  def in_file(self, sizes: Mapping[str, int]) -> list[int]:
    """Its shape there. sizes: of the dims."""
    return [sizes[dim] for dim in reversed(self.dims) if dim or not self.vector]

  def read(self, tensor: Tensor, sizes: Mapping[str, int]) -> np.ndarray:
    """As ours is: fp32 [x, y]."""
    return tensor.read().astype(np.float32).T.reshape([sizes[dim] for dim in self.dims])

  def unchanging(self, leaf: Leaf, kernel: Callable[[], np.ndarray]) -> np.ndarray:
    """Of a module that is not adapted: rank 0. kernel: as ours is, asked where it is needed."""
    if self.norms:
      return np.linalg.norm(np.asarray(kernel()).reshape(leaf.matrix), axis=0, keepdims=True)
    sizes = sizes_of(leaf, 0)
    return np.full([sizes[dim] for dim in self.dims], self.neutral, np.float32)


def sizes_of(leaf: Leaf, rank: int, num_parts: int = 1) -> dict[str, int]:
  """Of the dims of a kernel's leaves. num_parts: as many of them as one, side by side."""
  assert leaf.matrix
  return {"inputs": leaf.matrix[0], "outputs": leaf.matrix[1] * num_parts, "rank": rank, "": 1}


@dataclasses.dataclass(frozen=True)
class Beside(Format):
  """A format of leaves beside modules.

  targets: by the option of ours that chooses modules, their leaves. `target_modules` there holds them all; subsets: what holds
  those of an option too. group: what the leaves of all adapters stand in.
  options: of our method, from the settings and the largest rank. scale: what products are multiplied by there, from the
  settings, the module and its rank; scaled: the leaf that takes in what ours has otherwise, "" without. rank: our option.
  finish: the settings of ranks and scales, from what was trained and the leaves of all modules, which it may change.
  """

  targets: Mapping[str, Mapping[str, Stored]] = dataclasses.field(default_factory=dict)
  group: str = "lora"
  subsets: Mapping[str, str] = dataclasses.field(default_factory=dict)
  options: Callable[[Settings, int], dict[str, Any]] = lambda settings, rank: {}
  scale: Callable[[Settings, str, int], float] = lambda settings, module, rank: 1.0
  scaled: str = ""
  rank: str = "rank"
  finish: Callable[[Trained, Modules], dict[str, Any]] = lambda trained, modules: {}

  def split(self, found):
    names = {stored.name for group in self.targets.values() for stored in group.values()}
    own: dict[str, dict[str, Tensor]] = {}
    others = {}
    for key, tensor in found.items():
      name = key.removeprefix(self.root)
      mark = next((mark for mark in names if name.endswith(f".{mark}")), "")
      if mark:
        own.setdefault(name.removesuffix(f".{mark}"), {})[mark] = tensor
      else:
        others[name] = tensor
    return own, others

  def read(self, directory, base, settings, own):
    parts = {name: found for name, found in weights.parts_of(base.leaves).items() if found[0][0].matrix}
    places, options, found = {}, {}, {}
    for module, tensors in own.items():
      name = f"{weights.bare_name(base.family, module)}.weight"
      if name not in parts:
        raise ConfigError(f"{directory}: {' and '.join(sorted(tensors))} of {module}, which is no linear module of the base")
      places[module] = parts[name]
      found[module] = option, _, _ = self._read_module(f"{directory}: ", module, tensors, parts[name][0][0])
      for leaf, _ in parts[name]:
        if options.setdefault(_path(leaf), option) != option:
          raise ConfigError(f"{directory}: {module} is scaled on another side than in other layers; accepted is one side")
    largest = max((rank for *_, rank in found.values()), default=0)
    method = self._method(settings, largest, options)
    most = getattr(method, self.rank) if self.rank else 0
    if largest > most:
      raise ConfigError(f"{directory}: has products of rank {largest}, more than it says: {most}")
    split: dict[str, dict[Index, Arrays]] = {path: {} for path in options}
    for module, (option, arrays, rank) in found.items():
      if self.scaled:
        arrays[self.scaled] = arrays[self.scaled] * np.float32(self.scale(settings, module, rank) / method.scale)
      for leaf, index in places[module]:
        split[_path(leaf)][index] = {key: _part(array, self.targets[option][key], leaf) for key, array in arrays.items()}
    return method, dict(self._stack(base, options, split, most))

  def write(self, trained, family):
    of_path: dict[str, Arrays] = {}
    for name, value in trained.params.items():
      path, mark, key = name.partition(f"/{self.group}/{trained.method.adapter}/")
      if mark:
        of_path.setdefault(path, {})[key] = np.asarray(value)
    if trained.model.cfg.num_experts and (path := next((path for path in of_path if "/ffn/" in path), "")):
      raise ConfigError(f"peft.targets: matches {path}; an adapter of experts has no counterpart in peft, export it merged")
    leaves = list(weights.leaves_of(family, trained.model))
    chosen = {leaf.weight.theirs.removesuffix(".weight"): leaf for leaf in leaves if _path(leaf) in of_path}
    options = {module: self._option(of_path[_path(leaf)], leaf) for module, leaf in chosen.items()}
    modules = {}
    for module, option in options.items():
      fused = [leaf for leaf in leaves if leaf.weight.theirs == f"{module}.weight"]
      fused.sort(key=lambda leaf: leaf.weight.part)
      for (layer,), name in fused[0].places():
        stored = weights.model_name(family, name).removesuffix(".weight")
        modules[stored] = self._fuse(trained, option, fused, of_path, layer)
    settings = self.finish(trained, modules)
    names = {module: set(_targets(module, options.keys(), family, trained.model.cfg.num_layers)) for module in options}
    settings["target_modules"] = sorted(set().union(*names.values()))
    for option, setting in self.subsets.items():
      settings[setting] = sorted(set().union(*(names[module] for module, own in options.items() if own == option)))
    settings["fan_in_fan_out"] = not any(leaf.weight.transposed for leaf in chosen.values())
    stored = {key: leaf for group in self.targets.values() for key, leaf in group.items()}
    return {
      f"{self.root}{module}.{stored[key].name}": array.T.reshape(-1) if stored[key].vector else array.T
      for module, arrays in modules.items()
      for key, array in arrays.items()
    }, settings

  def _read_module(self, words: str, module: str, tensors: Mapping[str, Tensor], leaf: Leaf) -> tuple[str, Arrays, int]:
    """The option that its leaves are of, these as ours are, and their rank."""
    shapes = {name: list(tensor.shape) if tensor.dtype else None for name, tensor in tensors.items()}
    for option, group in self.targets.items():
      first = next((shapes.get(stored.name) for stored in group.values() if stored.dims == ("inputs", "rank")), None)
      sizes = sizes_of(leaf, first[0] if first else 0, leaf.weight.part[1])
      if shapes == {stored.name: stored.in_file(sizes) for stored in group.values()}:
        return option, {key: stored.read(tensors[stored.name], sizes) for key, stored in group.items()}, sizes["rank"]
    sizes = sizes_of(leaf, 0, leaf.weight.part[1])
    wanted = lambda stored: ", ".join("rank" if dim == "rank" else str(sizes[dim]) for dim in reversed(stored.dims))
    groups = [" and ".join(f"[{wanted(stored)}]" for stored in group.values()) for group in self.targets.values()]
    names = dict.fromkeys(stored.name for group in self.targets.values() for stored in group.values())
    got = " and ".join(f"{name} {shapes.get(name)}" for name in names)
    raise ConfigError(f"{words}{got} of {module}; expected are floats {' or '.join(groups)}")

  def _method(self, settings: Settings, rank: int, options: Mapping[str, str]) -> Any:
    """Ours, of these modules: the option that chooses each, by its path."""
    chosen = {option: [path for path, own in options.items() if own == option] for option in self.targets}
    pattern = lambda paths: "|".join(re.escape(path.removeprefix("backbone/")) for path in paths)
    targets = tuple((option, pattern(paths)) for option, paths in chosen.items())
    return plug.make("peft", plug.Plug(self.method, (*self.options(settings, rank).items(), *targets, ("adapter", ADAPTER))))

  def _stack(
    self, base: Checkpoint, options: Mapping[str, str], found: Mapping[str, Mapping[Index, Arrays]], rank: int
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Leaves of ours by name: of all layers, with ranks filled up by zeros, which change nothing."""
    leaves = {_path(leaf): leaf for leaf in base.leaves if leaf.matrix}
    for path, of_index in found.items():
      leaf = leaves[path]
      for key, stored in self.targets[options[path]].items():
        sizes = sizes_of(leaf, rank)
        whole = np.zeros((*leaf.shape[: leaf.stacked], *(sizes[dim] for dim in stored.dims)), np.float32)
        for index, place in leaf.places():
          kernel = functools.partial(_read_kernel, base, leaf, place)
          own = of_index[index][key] if index in of_index else stored.unchanging(leaf, kernel)
          whole[index][tuple(map(slice, own.shape))] = own
        yield f"{path}/{self.group}/{ADAPTER}/{key}", whole

  def _option(self, own: Arrays, leaf: Leaf) -> str:
    """Which of `targets` leaves of ours are of."""
    rank = own["a"].shape[-1] if "a" in own else 0
    sizes = sizes_of(leaf, rank)
    fits = lambda group: all(own[key].shape[-2:] == tuple(sizes[dim] for dim in stored.dims) for key, stored in group.items())
    return next(option for option, group in self.targets.items() if group.keys() == own.keys() and fits(group))

  def _fuse(self, trained: Trained, option: str, fused: list[Leaf], of_path: Mapping[str, Arrays], layer: int) -> Arrays:
    """The leaves of one layer's module, of which some or all parts are adapted."""
    found = {}
    for key, stored in self.targets[option].items():
      parts = []
      for leaf in fused:
        path = _path(leaf)
        kernel = functools.partial(operator.getitem, trained.params[leaf.name], layer)
        parts.append(of_path[path][key][layer] if path in of_path else stored.unchanging(leaf, kernel))
      found[key] = _side_by_side(parts, stored, fused[0].weight.theirs)
    return found


def _path(leaf: Leaf) -> str:
  """Of the module that the kernel is of."""
  return leaf.name.removesuffix("/kernel")


def _read_kernel(base: Checkpoint, leaf: Leaf, place: str) -> np.ndarray:
  """Of one layer, as ours is."""
  return leaf.from_stored(base.found[place].read().astype(np.float32))


def _part(array: np.ndarray, stored: Stored, leaf: Leaf) -> np.ndarray:
  """What a part of a fused kernel has of a leaf: its outputs."""
  i, num_parts = leaf.weight.part
  return np.split(array, num_parts, axis=stored.dims.index("outputs"))[i] if "outputs" in stored.dims else array


def _side_by_side(parts: list[np.ndarray], stored: Stored, theirs: str) -> np.ndarray:
  """The leaves of all parts as one."""
  growing = [axis for axis, dim in enumerate(stored.dims) if dim in GROWING]
  if len(growing) == 2:
    rows, columns = zip(*(part.shape for part in parts), strict=True)
    whole = np.zeros((sum(rows), sum(columns)), np.float32)
    for i, part in enumerate(parts):
      whole[sum(rows[:i]) : sum(rows[: i + 1]), sum(columns[:i]) : sum(columns[: i + 1])] = part
    return whole
  if growing:
    return np.concatenate(parts, axis=growing[0])
  if any(not np.array_equal(part, parts[0]) for part in parts):
    raise ConfigError(f"peft.feedforward: scales what parts of {theirs} read by different numbers, which peft has no place for")
  return parts[0]


def _targets(module: str, chosen: Iterable[str], family: Family, num_layers: int) -> list[str]:
  """The shortest end of a module's name that only chosen ones have; all its names where others end in the whole of it."""
  groups = (family.weights, *family.heads.values())
  linear = {weight.theirs.removesuffix(".weight") for group in groups for weight in group if weight.name.endswith("kernel")}
  words = module.split("{layer}.")[1].split(".")
  for end in (".".join(words[-n:]) for n in range(1, len(words) + 1)):
    if not any(f".{other}".endswith(f".{end}") for other in linear - set(chosen)):
      return [end]
  return [module.format(layer=i) for i in range(num_layers)]
