"""LoRA adapters in the format of the peft library (Mangrulkar et al. 2022), both ways.

A directory of adapter_config.json and adapter_model.safetensors is its base with changed tensors: a kernel has a product added,
a head is another one. So it is read as the base is, and fused kernels, prefixes and layouts are the base's business.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.files import read_json, read_object, write_json
from lm.interop import settings, tensors, weights
from lm.interop.tensors import Tensor
from lm.interop.weights import HEADS, Checkpoint, Leaf
from lm.models.family import Family
from lm.models.model import Model

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
# The config.json of the base with the adapter's head: its labels and pooling, for which peft has no place.
HEAD = "head.json"
TASK_TYPES = {
  "lm": "CAUSAL_LM", "classifier": "SEQ_CLS", "tagger": "TOKEN_CLS", "span": "QUESTION_ANS", "mlm": None, "chooser": None,
}  # fmt: skip
# Settings that change what is computed, and what of them has a counterpart here; false or unset always has.
ONLY = {
  "bias": ("none",),
  # The other ways to begin change the base too.
  "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
  **dict.fromkeys(("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "trainable_token_indices"), ()),
  **dict.fromkeys(("target_parameters", "alora_invocation_tokens", "arrow_config", "monteclora_config", "kasa_config"), ()),
}
_MODEL = "base_model.model."
Product = tuple[Any, Any]  # a [L, inputs, rank] and b [L, rank, outputs], whose product is added to a stack of kernels


def read_config(directory: Path) -> dict[str, Any]:
  """The adapter_config.json of a directory.

  Raises:
    ConfigError: not JSON, no LoRA, no base, or a setting that has no counterpart here.
  """
  path = directory / CONFIG
  found = read_object(path)
  if found.get("peft_type") != "LORA":
    raise ConfigError(f"{path}: peft_type={found.get('peft_type')!r} has no counterpart here; accepted is 'LORA'")
  for name, accepted in ONLY.items():
    if (value := found.get(name)) and value not in accepted:
      listed = ", ".join(map(repr, accepted)) or "false and unset"
      raise ConfigError(f"{path}: {name}={value!r} has no counterpart here; accepted are {listed}")
  missing = [name for name in ("base_model_name_or_path", "r", "lora_alpha") if not found.get(name)]
  if missing:
    raise ConfigError(f"{path}: {missing[0]} is not set")
  return found


def scan(directory: Path, base: Checkpoint) -> Checkpoint:
  """The base with the adapter's changes.

  Raises:
    ConfigError: as `read_config` and `weights.scan`, and tensors that are neither a product beside a kernel nor of a head.
  """
  cfg, family = read_config(directory), base.family
  pairs, brought = _sort(directory, family)
  heads = _heads(directory, base, brought)
  markers = {kind: weight.theirs for kind, group in family.heads.items() for weight in group if weight.name == HEADS[kind][1]}
  types = {name: kind for kind, name in TASK_TYPES.items() if name}
  said, brought_kinds = types.get(cfg.get("task_type")), [kind for kind, name in markers.items() if name in heads]
  kind = said if said in brought_kinds or not brought_kinds else brought_kinds[0]
  # A model of transformers has one head: beside another, that of the base is gone.
  groups = [family.heads[kind]] if kind and kind in family.heads else family.heads.values()
  kept = {weight.theirs for group in (family.weights, *groups) for weight in group}
  gone = _head_names(family) - kept
  found = {name: tensor for name, tensor in base.found.items() if name not in gone} | heads
  found |= _changed(directory, dataclasses.replace(base, found=found), cfg, pairs)
  values, labels = dict(base.settings), base.settings.get("id2label") or {}
  if kind in weights.LABELLED and markers.get(kind) in heads and len(labels) != heads[markers[kind]].shape[0]:
    values["id2label"] = {}  # of the base's head
  if kind is not None and kind in family.classes:
    values["architectures"] = [family.classes[kind]]
  return weights.assemble(directory, family, base.model.cfg, values | read_json(directory / HEAD), found)


def write(
  directory: Path, model: Model, params: Mapping[str, Any], products: Mapping[str, Product], scale: float, base: str
) -> None:
  """Writes products by the path of their modules, scaled by `scale`, and the model's head.

  Products of the parts of a fused kernel become one: their a side by side, their b in blocks.

  Args:
    model: with one head. params: all plain ones, by name. base: where transformers finds what they were added to.

  Raises:
    ConfigError: as `settings.nearest`, or products of experts, which are one tensor in transformers.
  """
  from safetensors.numpy import save_file

  family = settings.nearest(model.cfg)
  if not model.heads:
    raise ConfigError("--adapter: the run's head has no counterpart in transformers; export it without --adapter")
  fused = _fuse(model, family, products)
  name_in_file = lambda name: _MODEL + weights.model_name(family, name)
  found = {name_in_file(name): array for parts in fused.values() for name, array in _side_by_side(parts)}
  stored, of_heads = weights.stored(model, params.__getitem__, family), _head_names(family)
  heads = {name_in_file(name): name for name in stored if name in of_heads}
  roots = sorted({name.split(".")[0] for name in stored if name in of_heads})
  heads |= {_MODEL + copy: name for copy, name in family.copies if copy.split(".")[0] in roots and copy not in stored}
  found |= {name: stored[original].read() for name, original in heads.items()}
  ((_, spec),) = model.heads
  about = {"peft_type": "LORA", "task_type": TASK_TYPES[spec.kind], "base_model_name_or_path": base, "bias": "none"}
  about |= _describe(family, fused, model.cfg.num_layers, scale)
  write_json(directory / CONFIG, about | {"modules_to_save": roots or None, "inference_mode": True})
  save_file({name: np.ascontiguousarray(array) for name, array in found.items()}, directory / FILE, metadata={"format": "pt"})


def _sort(directory: Path, family: Family) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
  """{module, as peft calls it: {"A": tensor, "B": tensor}}, and all others by the family file's names."""
  pairs: dict[str, dict[str, Tensor]] = {}
  others = {}
  for key, tensor in tensors.scan_file(directory / FILE).items():
    name = key.removeprefix(_MODEL)
    if found := re.fullmatch(r"(.+)\.lora_([AB])\.weight", name):
      pairs.setdefault(found[1], {})[found[2]] = tensor
    else:
      others[_bare(family, name).replace(".base_layer.", ".")] = tensor
  return pairs, others


def _bare(family: Family, name: str) -> str:
  """A name of a module or tensor without the backbone's prefix."""
  prefix = max((prefix for prefix in family.prefixes if name.startswith(prefix)), key=len, default="")
  return name.removeprefix(prefix)


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
        f"{directory}: {name} has no counterpart here, as it is not the base's; accepted are lora_A and lora_B of linear"
        f" modules, and whole heads ({', '.join(sorted(of_heads))})"
      )
  return heads


def _changed(
  directory: Path, base: Checkpoint, cfg: Mapping[str, Any], pairs: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
  """The kernels that have a product, with it."""
  kernels = {name: leaf for leaf in base.leaves if leaf.matrix for _, name in leaf.places()}
  found = {}
  for module, pair in pairs.items():
    name = _bare(base.family, module) + ".weight"
    if name not in kernels:
      raise ConfigError(f"{directory}: lora_A and lora_B of {module}, which is no linear module of the base")
    leaf = kernels[name]
    shape = leaf.stored_shape if leaf.weight.transposed else leaf.stored_shape[::-1]
    sizes = {part: list(pair[part].shape) if part in pair and pair[part].dtype else None for part in "AB"}
    rank = sizes["A"][0] if sizes["A"] else 0
    if sizes != {"A": [rank, shape[1]], "B": [shape[0], rank]}:
      raise ConfigError(
        f"{directory}: lora_A {sizes['A']} and lora_B {sizes['B']} of {module};"
        f" expected are floats [rank, {shape[1]}] and [{shape[0]}, rank]"
      )
    patterns = (cfg.get("alpha_pattern") or {}).items()
    alpha = next((value for key, value in patterns if re.match(rf"(.*\.)?({key})$", module)), cfg["lora_alpha"])
    scale = alpha / (rank**0.5 if cfg.get("use_rslora") else rank)
    read = functools.partial(_read_changed, base.found[name], pair["A"], pair["B"], scale, leaf.weight.transposed)
    found[name] = Tensor.computed(base.found[name].shape, read)
  return found


def _read_changed(kernel: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool) -> np.ndarray:
  product = b.read().astype(np.float32) @ a.read().astype(np.float32)
  return kernel.read().astype(np.float32) + np.float32(scale) * (product if transposed else product.T)


def _fuse(model: Model, family: Family, products: Mapping[str, Product]) -> dict[str, list[tuple[Leaf, Product]]]:
  """Products by the module they stand in, "layers.{layer}.mlp.up_proj"."""
  leaves = {leaf.name: leaf for leaf in weights.leaves_of(family, model)}
  fused: dict[str, list[tuple[Leaf, Product]]] = {}
  for path, product in products.items():
    if model.cfg.num_experts and "/ffn/" in path:
      raise ConfigError(f"peft.targets: matches {path}; an adapter of experts has no counterpart in peft, export it merged")
    leaf = leaves[f"{path}/kernel"]
    fused.setdefault(leaf.weight.theirs.removesuffix(".weight"), []).append((leaf, product))
  return fused


def _side_by_side(parts: list[tuple[Leaf, Product]]) -> Iterator[tuple[str, np.ndarray]]:
  """lora_A [r, inputs] and lora_B [outputs, r] of every layer of a module, of which some or all parts have a product."""
  for (layer,), name in parts[0][0].places():
    rows, columns = [np.asarray(a[layer]).T for _, (a, _) in parts], []
    for leaf, (_, b) in parts:
      i, num_parts = leaf.weight.part
      b_FR = np.asarray(b[layer]).T
      blocks = np.zeros((num_parts, *b_FR.shape), np.float32)
      blocks[i] = b_FR
      columns.append(blocks.reshape(-1, b_FR.shape[1]))
    module = name.removesuffix(".weight")
    yield f"{module}.lora_A.weight", np.concatenate(rows)
    yield f"{module}.lora_B.weight", np.concatenate(columns, axis=1)


def _describe(family: Family, fused: Mapping[str, list[tuple[Leaf, Product]]], num_layers: int, scale: float) -> dict[str, Any]:
  """Ranks, scales and modules as peft reads them. A module of several products has their ranks added up."""
  sizes = {module: [a.shape[-1] for _, (a, _) in parts] for module, parts in fused.items()}
  ranks = {module: sum(each) for module, each in sizes.items()}
  rank = min(ranks.values())
  larger = {re.escape(module).replace(r"\{layer\}", r"\d+"): r for module, r in ranks.items() if r != rank}
  return {
    "r": rank,
    "lora_alpha": scale * rank,
    "rank_pattern": larger,
    "alpha_pattern": {module: scale * r for module, r in larger.items()},
    "target_modules": sorted({name for module in fused for name in _targets(module, fused.keys(), family, num_layers)}),
    "fan_in_fan_out": not any(leaf.weight.transposed for parts in fused.values() for leaf, _ in parts),
    "lora_dropout": 0.0,
  }


def _targets(module: str, chosen: Iterable[str], family: Family, num_layers: int) -> list[str]:
  """The shortest end of a module's name that only chosen ones have; all its names where others end in the whole of it."""
  groups = (family.weights, *family.heads.values())
  linear = {weight.theirs.removesuffix(".weight") for group in groups for weight in group if weight.name.endswith("kernel")}
  words = module.split("{layer}.")[1].split(".")
  for end in (".".join(words[-n:]) for n in range(1, len(words) + 1)):
    if not any(f".{other}".endswith(f".{end}") for other in linear - set(chosen)):
      return [end]
  return [module.format(layer=i) for i in range(num_layers)]
