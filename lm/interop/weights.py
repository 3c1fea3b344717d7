"""Tensors of a Hugging Face directory <-> our parameter tree, by the weight lists of the family files.

Both directions go by the leaves of our model: each knows the tensors it is made of, one per layer and expert, and how they lie.
"""

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import tree
from lm.config import ConfigError
from lm.interop import settings, tensors
from lm.interop.tensors import Tensor
from lm.models.family import Family, Weight
from lm.models.head_spec import HeadSpec
from lm.models.model import Model
from lm.models.transformer_config import TransformerConfig
from lm.shapes import kernel_dims

# Kind of head -> its name here, and the parameter that tells whether a file has it.
HEADS = {
  "lm": ("lm", "head_lm/out/kernel"),
  "mlm": ("mlm", "head_mlm/bias"),
  "classifier": ("classify", "head_classify/out/kernel"),
  "tagger": ("tag", "head_tag/out/kernel"),
  "span": ("span", "head_span/out/kernel"),
  "chooser": ("classify", "head_classify/out/kernel"),  # read as a classifier of one output, which it is there too
}
LABELLED = ("classifier", "tagger")  # whose outputs have names
# Heads that a file may call alike, of which a model of transformers has one: its class says which.
EXCLUSIVE = ("classifier", "tagger", "span")
POOLER = "head_classify/pooler/kernel"
LABEL_PROBLEMS = ("single_label_classification", "multi_label_classification")
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": tensors.DTYPES["BF16"]}
SHARD_BYTES = 5_000_000_000  # of a file, as transformers cuts them


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One parameter of ours. stacked: leading dims of `shape`, of layers and experts. matrix: (inputs, outputs) of a kernel."""

  name: str
  shape: tuple[int, ...]
  stacked: int
  matrix: tuple[int, int] | None
  weight: Weight

  @property
  def stored_shape(self) -> tuple[int, ...]:
    """Of each of its tensors in a file."""
    num_parts = self.weight.part[1]
    if self.matrix:
      rows, columns = self.matrix[0], self.matrix[1] * num_parts
      return (columns, rows) if self.weight.transposed else (rows, columns)
    each = self.shape[self.stacked :]
    return each if self.name.endswith("embedding") else (math.prod(each) * num_parts,)

  def places(self) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index of the stacked dims, the tensor that stands there)."""
    dims = [name for name in ("layer", "expert") if f"{{{name}}}" in self.weight.theirs]
    assert len(dims) == self.stacked, f"{self.name}: {self.weight.theirs} for {self.stacked} stacked dims"
    for index in itertools.product(*map(range, self.shape[: self.stacked])):
      yield index, self.weight.theirs.format(**dict(zip(dims, index, strict=True)))

  def from_stored(self, stored: np.ndarray) -> np.ndarray:
    """One tensor as a part of ours."""
    i, num_parts = self.weight.part
    ours = stored.T if self.weight.transposed else stored
    return np.split(ours, num_parts, axis=-1)[i].reshape(self.shape[self.stacked :])

  def to_stored(self, ours: np.ndarray) -> np.ndarray:
    """The inverse, of this part alone."""
    if self.matrix:
      return ours.reshape(self.matrix).T if self.weight.transposed else ours.reshape(self.matrix)
    return ours if self.name.endswith("embedding") else ours.reshape(-1)


Part = tuple[Leaf, tuple[int, ...]]  # of a parameter, the place in its stacked dims


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A directory in which every parameter of `model` has its tensors. left_out: tensors that nothing here reads.

  added: by name, what a method put around the model, its tuner; no tensor of the model is that.
  """

  directory: Path
  family: Family
  settings: Mapping[str, Any]
  model: Model
  leaves: tuple[Leaf, ...]
  found: Mapping[str, Tensor]
  left_out: tuple[str, ...]
  added: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def scan(directory: Path) -> Checkpoint:
  """What a directory holds, checked name by name and shape by shape; no tensor is read but copies of tied ones.

  Raises:
    ConfigError: as `settings.read` and `tensors.scan`, and tensors that are missing, unknown, of another shape or no floats.
  """
  family, cfg, values = settings.read(directory)
  return assemble(directory, family, cfg, values, _canonical(directory, family, cfg, tensors.scan(directory)))


def assemble(
  directory: Path, family: Family, cfg: TransformerConfig, values: Mapping[str, Any], found: Mapping[str, Tensor]
) -> Checkpoint:
  """The checkpoint of tensors that are called as the family file calls them, with the heads that they are enough for.

  values: what its config.json says. Raises ConfigError as `scan` does for tensors; `directory` is named there.
  """
  model = Model(cfg, tuple(sorted(_heads(family, cfg, values, found))))
  leaves = tuple(leaves_of(family, model))
  wanted = {name: leaf for leaf in leaves for _, name in leaf.places()}
  ignored = [name for name in found if any(re.fullmatch(pattern, name) for pattern in family.ignored)]
  problems = {
    "missing": [name for name in wanted if name not in found],
    "unknown": [name for name in found if name not in wanted and name not in ignored],
    "of another shape": [
      f"{name} {list(found[name].shape)} instead of {list(leaf.stored_shape)}"
      for name, leaf in wanted.items()
      if name in found and found[name].shape != leaf.stored_shape
    ],
    "not of a floating-point type": [name for name in wanted if name in found and found[name].dtype is None],
  }
  if any(problems.values()):
    listed = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
    raise ConfigError(f"{directory}: tensors {listed}")
  return Checkpoint(directory, family, values, model, leaves, found, tuple(ignored))


def load(checkpoint: Checkpoint, shardings: Mapping[str, jax.sharding.Sharding] | None = None) -> dict[str, jax.Array]:
  """Parameters by name, fp32, read one tensor at a time onto their shards.

  shardings: by name; the default device without. No more than this host's part of one parameter is there beside them.
  """
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  place = shardings or dict.fromkeys((*(leaf.name for leaf in checkpoint.leaves), *checkpoint.added), here)
  added = {name: jax.device_put(array, place[name]) for name, array in checkpoint.added.items()}
  return {leaf.name: _load_leaf(leaf, checkpoint.found, place[leaf.name]) for leaf in checkpoint.leaves} | added


def stored(model: Model, get: Callable[[str], Any], family: Family) -> dict[str, Tensor]:
  """A model's tensors as a file has them, by the family file's names. get: a parameter by name, asked when one is read."""
  parts, host = parts_of(leaves_of(family, model)), functools.cache(lambda name: np.asarray(get(name)))
  read = lambda name: join(parts[name], [leaf.to_stored(host(leaf.name)[index]) for leaf, index in parts[name]])
  shapes = {name: places[0][0].stored_shape for name, places in parts.items()}
  return {name: Tensor.computed(shape, functools.partial(read, name)) for name, shape in shapes.items()}


def parts_of(leaves: Iterable[Leaf]) -> dict[str, list[Part]]:
  """What each tensor of a file is made of, by its name, in order."""
  parts: dict[str, list[Part]] = {}
  for leaf in leaves:
    for index, name in leaf.places():
      parts.setdefault(name, []).append((leaf, index))
  return {name: sorted(found, key=lambda part: part[0].weight.part) for name, found in parts.items()}


def join(parts: Sequence[Part], pieces: Sequence[np.ndarray]) -> np.ndarray:
  """A tensor of a file from its parts as they are stored."""
  return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=0 if parts[0][0].weight.transposed else -1)


def save(model: Model, params: Mapping[str, Any], family: Family, directory: Path, dtype: str = "float32") -> None:
  """Writes params (by name) as one safetensors file, or as several with an index where they are large."""
  from safetensors.numpy import save_file

  if not head_kinds(model):  # transformers saves a bare backbone without prefix
    family = dataclasses.replace(family, prefixes=("",))
  file_name = functools.partial(model_name, family)
  found, kind = stored(model, params.__getitem__, family), np.dtype(TYPES[dtype])
  size = lambda name: math.prod(found[name].shape) * kind.itemsize
  files = _split(sorted(found), size)
  names = (
    [tensors.SINGLE] if len(files) == 1 else [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
  )
  for file, chosen in zip(names, files, strict=True):
    values = {file_name(name): np.ascontiguousarray(found[name].read().astype(kind)) for name in chosen}
    save_file(values, directory / file, metadata={"format": "pt"})
  if len(files) > 1:
    weight_map = {file_name(name): file for file, chosen in zip(names, files, strict=True) for name in chosen}
    total = sum(map(size, found))
    (directory / tensors.INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def model_name(family: Family, name: str) -> str:
  """What a tensor of the family file is called in a model with a head: with the backbone's prefix, if it is a part of it."""
  of_heads = {weight.theirs for group in family.heads.values() for weight in group}
  return name if name in of_heads else family.prefixes[0] + family.renamed.get(name, name)


def bare_name(family: Family, name: str) -> str:
  """A name of a module or tensor without the backbone's prefix."""
  prefix = max((prefix for prefix in family.prefixes if name.startswith(prefix)), key=len, default="")
  return name.removeprefix(prefix)


def labels(checkpoint: Checkpoint) -> tuple[str, ...]:
  """The classifier's labels in the order of its outputs, () without a classifier, or where its one output is a number.

  Raises:
    ConfigError: id2label that does not fit the outputs.
  """
  spec = dict(checkpoint.model.heads).get("classify")
  if spec is None or not spec.num_outputs:
    return ()
  problem = checkpoint.settings.get("problem_type")
  if spec.num_outputs == 1 and problem in (None, "regression"):
    return ()
  if problem not in (None, *LABEL_PROBLEMS) or spec.num_outputs == 1:
    raise ConfigError(
      f"{checkpoint.directory}: its head gives {spec.num_outputs} outputs of problem_type={problem!r}; accepted are"
      f" {', '.join(LABEL_PROBLEMS)} of several outputs, and regression with one"
    )
  return _names(checkpoint, spec)


def tags(checkpoint: Checkpoint) -> tuple[str, ...]:
  """The tagger's tags in the order of its outputs, () without a tagger; errors as `labels`."""
  spec = dict(checkpoint.model.heads).get("tag")
  return _names(checkpoint, spec) if spec else ()


def _names(checkpoint: Checkpoint, spec: HeadSpec) -> tuple[str, ...]:
  usual = {str(i): f"LABEL_{i}" for i in range(spec.num_outputs)}
  given = checkpoint.settings.get("id2label") or usual
  if not isinstance(given, dict) or given.keys() != usual.keys() or len(set(map(str, given.values()))) < len(usual):
    raise ConfigError(
      f"{checkpoint.directory}: id2label={str(given)[:200]} is not a label of its own for each of the {spec.kind}'s"
      f" {spec.num_outputs} outputs"
    )
  return tuple(str(given[i]) for i in usual)


def chooses(checkpoint: Checkpoint) -> bool:
  """Whether its one output is the score of a choice."""
  return any(str(name).endswith("ForMultipleChoice") for name in checkpoint.settings.get("architectures") or ())


def head_kinds(model: Model) -> list[str]:
  """The kinds of a model's heads that transformers has; a pooler alone is none."""
  return [spec.kind for _, spec in model.heads if spec.kind in HEADS and (spec.kind != "classifier" or spec.num_outputs)]


def is_written(model: Model) -> bool:
  """Whether transformers has this model with the first of its heads, which is what an export keeps."""
  if not settings.has_counterpart(model.cfg):
    return False
  first = head_kinds(model)[:1]
  return not _renamed(model) and all(kind in settings.nearest(model.cfg).classes for kind in first)


def _renamed(model: Model) -> list[str]:
  """Heads that have a name of their own, which no file of a family knows."""
  return [name for name, spec in model.heads if spec.kind in HEADS and name != HEADS[spec.kind][0]]


def check_heads(family: Family, model: Model) -> None:
  """Raises ConfigError for a head that the family has no class for, and for two that are called alike there."""
  kinds = head_kinds(model)
  if named := _renamed(model):
    raise ConfigError(f"head {named[0]!r} has a name of its own (task.head_name), which transformers has no place for")
  if lacking := [kind for kind in kinds if kind not in family.classes]:
    accepted = ", ".join(filter(None, family.classes))
    raise ConfigError(f"the {lacking[0]}'s head of a {family.model_type} has no counterpart; accepted are {accepted}")
  if len(alike := [kind for kind in kinds if kind in EXCLUSIVE]) > 1:
    raise ConfigError(f"a model of transformers has one of the heads {' and '.join(alike)}; accepted are runs of one of them")


def leaves_of(family: Family, model: Model) -> Iterator[Leaf]:
  """The parameters of a model with what the family says of them; errors as `check_heads`."""
  check_heads(family, model)
  weights = {weight.name: weight for group in (family.weights, *family.heads.values()) for weight in group}
  for name, box in tree.flatten(model.abstract).items():
    assert name in weights, f"{family.model_type}: the family file does not say where {name} stands"
    shape, dims = box.value.shape, box.names
    stacked = sum(name in ("layers", "experts") for name in dims[:2]) if dims[0] == "layers" else 0
    matrix = None
    if name.endswith("kernel"):
      _, rows, columns = kernel_dims(dims)
      matrix = math.prod(shape[i] for i in rows), math.prod(shape[i] for i in columns)
    yield Leaf(name, shape, stacked, matrix, weights[name])


def _load_leaf(leaf: Leaf, found: Mapping[str, Tensor], sharding: jax.sharding.Sharding) -> jax.Array:
  """Each tensor is read once, whatever it is split into; what other hosts hold is left out."""
  ranges = {
    device: tuple(range(*s.indices(n)) for s, n in zip(index, leaf.shape, strict=True))
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items()
    if index is not None
  }
  shards = {whole: _empty([len(r) for r in whole]) for whole in ranges.values()}
  for place, name in leaf.places():
    holders = [whole for whole in shards if all(i in r for i, r in zip(place, whole, strict=False))]
    if not holders:
      continue
    ours = leaf.from_stored(found[name].read())
    for whole in holders:
      target = tuple(i - r.start for i, r in zip(place, whole, strict=False))
      shards[whole][target] = ours[tuple(slice(r.start, r.stop) for r in whole[leaf.stacked :])]
  arrays = [jax.device_put(shards[whole], device) for device, whole in ranges.items()]
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def _empty(shape: list[int]) -> np.ndarray:
  """An fp32 array that starts where jax's CPU device takes it as it is; it copies what numpy allocates."""
  num_bytes, aligned = 4 * math.prod(shape), 64
  memory = np.empty(num_bytes + aligned, np.uint8)
  start = -memory.ctypes.data % aligned
  return memory[start : start + num_bytes].view(np.float32).reshape(shape)


def _canonical(directory: Path, family: Family, cfg: TransformerConfig, found: dict[str, Tensor]) -> dict[str, Tensor]:
  """The tensors by the names of the family file, without prefix, old spellings and second copies."""
  embed = next(weight.theirs for weight in family.weights if weight.name == "backbone/embed/embedding")
  prefix = next((prefix for prefix in family.prefixes if prefix + embed in found), None)
  if prefix is None:
    expected = " or ".join(prefix + embed for prefix in family.prefixes)
    raise ConfigError(f"{directory}: has no tensor {expected}, which a {family.model_type} has")
  spelled = lambda name: re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name.removeprefix(prefix)))
  file_names = {theirs: ours for ours, theirs in family.renamed.items()}
  named: dict[str, Tensor] = {}
  first: dict[str, str] = {}
  for name, tensor in found.items():
    ours = file_names.get(spelled(name), spelled(name))
    if ours in named:
      raise ConfigError(f"{directory}: {first[ours]} and {name} are two spellings of one tensor")
    named[ours], first[ours] = tensor, name
  for copy, original in family.copies:
    if copy not in named or (original == embed and not cfg.tied):
      continue
    if original in named and not tensors.equal(named[copy], named[original]):
      raise ConfigError(f"{directory}: {copy} differs from {original}, but config.json says that they are tied")
    named.setdefault(original, named.pop(copy))
  return named


def _heads(
  family: Family, cfg: TransformerConfig, values: Mapping[str, Any], found: Mapping[str, Tensor]
) -> Iterator[tuple[str, HeadSpec]]:
  """values: what config.json says; of EXCLUSIVE heads the one whose class it names, the classifier where it names none."""
  theirs = {weight.name: weight.theirs for group in (family.weights, *family.heads.values()) for weight in group}
  classes = [name.rpartition("For")[2] for name in values.get("architectures") or ()]
  is_named = lambda kind: family.classes[kind].rpartition("For")[2] in classes
  only = next((kind for kind in EXCLUSIVE if kind in family.heads and is_named(kind)), "classifier")
  for kind in (kind for kind in family.heads if kind == only or kind not in EXCLUSIVE):
    name, marker = HEADS[kind]
    if kind == "lm" and cfg.tied:
      if theirs[HEADS["classifier"][1]] not in found:
        yield name, HeadSpec(kind)  # the embedding table is all it needs
    elif theirs[marker] in found:
      yield name, HeadSpec(kind, {"span": 2}.get(kind) or (found[theirs[marker]].shape[0] if kind in LABELLED else 0))
  has_out = only == "classifier" and theirs[HEADS["classifier"][1]] in found
  if not has_out and theirs.get(POOLER) in found and cfg.pooler == "tanh":
    yield HEADS["classifier"][0], HeadSpec("classifier", 0)  # the pooler alone


def _split(names: Iterable[str], size: Any) -> list[list[str]]:
  """The names over files of at most SHARD_BYTES, or of one tensor."""
  files, filled = [[]], 0
  for name in names:
    if files[-1] and filled + size(name) > SHARD_BYTES:
      files.append([])
      filled = 0
    files[-1].append(name)
    filled += size(name)
  return files


def some(names: Sequence[str], most: int = 20) -> str:
  """The first names of a list, and how many more there are."""
  more = f" and {len(names) - most} more" if len(names) > most else ""
  return ", ".join(names[:most]) + more
