"""Directories of the peft library (Mangrulkar et al. 2022), both ways; lm/interop/adapters says what each method keeps there.

Where a method folds into kernels, a directory of adapter_config.json and adapter_model.safetensors is its base with changed
tensors; so it is read as the base is, and fused kernels, prefixes and layouts are the base's business. What cannot be merged
stays around the model.
"""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm import tree
from lm.config import ConfigError
from lm.files import read_json, read_object, write_json
from lm.interop import adapters, settings, tensors, weights
from lm.interop.adapters.format import Arrays, Format, Settings, Trained
from lm.interop.tensors import Tensor
from lm.interop.weights import HEADS, Checkpoint, Part
from lm.models.family import Family

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
# The config.json of the base with the adapter's head: its labels and pooling, for which peft has no place.
HEAD = "head.json"
BASE_HASH = "base_sha256"  # in the header of the file: of the parameters that were trained on


@functools.cache
def formats() -> dict[str, Format]:
  """Of all methods that peft has, by ours."""
  modules = (importlib.import_module(f"{adapters.__name__}.{info.name}") for info in pkgutil.iter_modules(adapters.__path__))
  return {module.FORMAT.method: module.FORMAT for module in modules if hasattr(module, "FORMAT")}


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
  """A directory beside its base. leaves: the method's by name. checkpoint: the model with it, merged where that can be."""

  method: Any
  leaves: Arrays
  checkpoint: Checkpoint


def read_config(directory: Path) -> tuple[Format, dict[str, Any]]:
  """The format and the adapter_config.json of a directory.

  Raises:
    ConfigError: not JSON, a method that is unknown here, no base, or a setting that has no counterpart here.
  """
  path = directory / CONFIG
  found = read_object(path)
  known = formats().values()
  if found.get("peft_type") not in {known.peft_type for known in known}:
    listed = ", ".join(sorted({repr(known.peft_type) for known in known}))
    raise ConfigError(f"{path}: peft_type={found.get('peft_type')!r} has no counterpart here; accepted are {listed}")
  form = next(known for known in known if known.describes(found))
  for name, accepted in form.only.items():
    if (value := found.get(name)) and value not in accepted:
      listed = ", ".join(map(repr, accepted)) or "false and unset"
      raise ConfigError(f"{path}: {name}={value!r} has no counterpart here; accepted are {listed}")
  missing = [name for name in ("base_model_name_or_path", *form.needed) if not found.get(name)]
  if missing:
    raise ConfigError(f"{path}: {missing[0]} is not set")
  return form, found


def base_hash(directory: Path) -> str:
  """Of the parameters that a run of ours trained the adapter on, "" where it was written by peft."""
  return tensors.read_metadata(directory / FILE).get(BASE_HASH, "")


def read(directory: Path, base: Checkpoint) -> Adapter:
  """What a directory says of its base.

  Raises:
    ConfigError: as `read_config` and `weights.scan`; tensors that are neither the method's nor of a head; a model for which
      peft computes something else.
  """
  form, cfg = read_config(directory)
  own, others = form.split(tensors.scan_file(directory / FILE))
  heads = _heads(directory, base, {_spelled(base.family, name): tensor for name, tensor in others.items()})
  with_heads = _assemble(directory, base, cfg, form, heads)
  kind = next(iter(weights.head_kinds(with_heads.model)), "")
  if problem := form.problem(base.model.cfg, kind):
    raise ConfigError(f"{directory}: peft {problem}")
  method, leaves = form.read(directory, with_heads, cfg, own)
  if not method.merges:
    checkpoint = dataclasses.replace(with_heads, model=dataclasses.replace(with_heads.model, tuner=method), added=leaves)
    return Adapter(method, leaves, checkpoint)
  changed = _changed(with_heads, method, leaves)
  checkpoint = dataclasses.replace(with_heads, found={**with_heads.found, **changed})
  of_backbone = {name: leaf for name, leaf in leaves.items() if name.startswith("backbone/")}
  return Adapter(method, of_backbone, checkpoint)  # heads are kept whole


def write(directory: Path, trained: Trained, base: str, base_sha256: str = "") -> None:
  """Writes what a run trained, and the model's head.

  Args:
    base: where transformers finds what it was trained on. base_sha256: of its parameters, "" if unknown.

  Raises:
    ConfigError: as `settings.nearest`, or what peft has no counterpart of.
  """
  from safetensors.numpy import save_file

  family, name = settings.nearest(trained.model.cfg), type(trained.method).__name__.lower()
  if not trained.model.heads:
    raise ConfigError("--adapter: the run's head has no counterpart in transformers; export it without --adapter")
  if name not in formats():
    raise ConfigError(f"peft={name!r}: the peft library has no such method; accepted are {', '.join(sorted(formats()))}")
  form = formats()[name]
  if problem := form.problem(trained.model.cfg, trained.kind):
    raise ConfigError(f"peft={form.method!r}: the peft library {problem}; such a run is used from its own workdir")
  found, own = form.write(trained, family)
  plain = dataclasses.replace(trained.model, tuner=None)
  stored, of_heads = weights.stored(plain, trained.params.__getitem__, family), _head_names(family)
  name_in_file = lambda name: form.root + weights.model_name(family, name)
  heads = {name_in_file(name): name for name in stored if name in of_heads}
  roots = sorted({name.split(".")[0] for name in stored if name in of_heads})
  heads |= {form.root + copy: name for copy, name in family.copies if copy.split(".")[0] in roots and copy not in stored}
  found |= {name: stored[original].read() for name, original in heads.items()}
  about = {"peft_type": form.peft_type, "task_type": form.task_types[trained.kind], "base_model_name_or_path": base}
  directory.mkdir(parents=True, exist_ok=True)
  write_json(directory / CONFIG, about | own | {"modules_to_save": roots or None, "inference_mode": True})
  metadata = {"format": "pt"} | ({BASE_HASH: base_sha256} if base_sha256 else {})
  save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, directory / FILE, metadata=metadata)


def _spelled(family: Family, name: str) -> str:
  """A tensor of the model as the family file calls it."""
  return weights.bare_name(family, name).replace(".base_layer.", ".")


def _head_names(family: Family) -> set[str]:
  """The tensors that stand in heads."""
  of_backbone = {weight.theirs for weight in family.weights if not weight.name.startswith("head_")}
  return {weight.theirs for group in (family.weights, *family.heads.values()) for weight in group} - of_backbone


def _heads(directory: Path, base: Checkpoint, brought: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The tensors of heads, without second copies and without those that peft only repeats of the base."""
  heads, of_heads = dict(brought), _head_names(base.family)
  for copy, original in base.family.copies:
    if copy in heads and (original in of_heads or base.model.cfg.tied):
      heads.setdefault(original, heads.pop(copy))
  for name in sorted(heads.keys() - of_heads):
    tensor, theirs = heads.pop(name), base.found.get(name)
    if theirs is None or not tensors.equal(tensor, theirs):
      raise ConfigError(
        f"{directory}: {name} has no counterpart here, as it is not the base's; accepted are what the method adds to linear"
        f" modules, and whole heads ({', '.join(sorted(of_heads))})"
      )
  return heads


def _assemble(directory: Path, base: Checkpoint, cfg: Settings, form: Format, heads: Mapping[str, Tensor]) -> Checkpoint:
  """The base with the adapter's heads. A model of transformers has one: beside another, that of the base is gone."""
  family = base.family
  markers = {kind: weight.theirs for kind, group in family.heads.items() for weight in group if weight.name == HEADS[kind][1]}
  types = {name: kind for kind, name in form.task_types.items() if name}
  said, brought = types.get(cfg.get("task_type") or ""), [kind for kind, name in markers.items() if name in heads]
  kind = said if said in brought or not brought else brought[0]
  groups = [family.heads[kind]] if kind and kind in family.heads else family.heads.values()
  kept = {weight.theirs for group in (family.weights, *groups) for weight in group}
  gone = _head_names(family) - kept
  found = {name: tensor for name, tensor in base.found.items() if name not in gone} | dict(heads)
  values, labels = dict(base.settings), base.settings.get("id2label") or {}
  if kind in weights.LABELLED and markers.get(kind) in heads and len(labels) != heads[markers[kind]].shape[0]:
    values["id2label"] = {}  # of the base's head
  if kind is not None and kind in family.classes:
    values["architectures"] = [family.classes[kind]]
  return weights.assemble(directory, family, base.model.cfg, values | read_json(directory / HEAD), found)


def _changed(base: Checkpoint, method: Any, leaves: Arrays) -> dict[str, Tensor]:
  """The tensors that the method folds into, with it; each is computed when it is read."""
  paths = {name.split(f"/{method.adapter}/")[0].rsplit("/", 1)[0] for name in leaves}
  touched = {leaf.name for leaf in base.leaves if leaf.name.rpartition("/")[0] in paths}
  found = {}
  for name, parts in weights.parts_of(base.leaves).items():
    if any(leaf.name in touched for leaf, _ in parts):
      read = functools.partial(_read_changed, base.found[name], parts, method, leaves)
      found[name] = Tensor.computed(base.found[name].shape, read)
  return found


def _read_changed(tensor: Tensor, parts: list[Part], method: Any, leaves: Arrays) -> np.ndarray:
  stored, pieces = tensor.read().astype(np.float32), []
  for leaf, index in parts:
    mark = f"{leaf.name.rpartition('/')[0]}/"
    own = {name: np.asarray(array[index]) for name, array in leaves.items() if name.startswith(mark)}
    merged = method.merge(tree.unflatten({leaf.name: leaf.from_stored(stored), **own}))
    pieces.append(leaf.to_stored(np.asarray(tree.flatten(merged)[leaf.name])))
  return weights.join(parts, pieces)
