"""Collectives of a compiled program: which mesh axes they go along, and how many bytes a device sends."""

import math
import re
from collections.abc import Mapping

import numpy as np

from lm.preflight.hlo import Computation, Instruction, Module

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
STARTS = '"AsyncCollectiveStart"'


def starts_one(computation: Computation) -> bool:
  """Whether it is the fusion that starts a collective, which others continue and end."""
  return any(STARTS in instruction.attributes for instruction in computation.values())


def started_channels(module: Module) -> set[str | None]:
  """Channels of collectives that are split into start, continue and done: they count where they start."""
  starting = [computation for computation in module.computations.values() if starts_one(computation)]
  return {i.attribute(r"channel_id=(\d+)") for computation in starting for i in computation.values() if i.op in KINDS}


def kind_of(name: str, instruction: Instruction) -> str:
  """Its kind, "" if it is none. name: of its computation: TPUs fuse an all-reduce with the slice that makes it a scatter."""
  kind = instruction.op.removesuffix("-start")
  if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
    return "reduce-scatter"
  return kind if kind in KINDS else ""


def sent_bytes(computation: Computation, instruction: Instruction, kind: str, n: int) -> float:
  """Bytes that one of n devices sends, by ring algorithms."""
  size = sum(operand.nbytes for operand in computation.operands(instruction))
  ring = size * (n - 1) / n
  whole = {"collective-permute": size, "collective-broadcast": size}
  return ({"all-gather": size * (n - 1), "all-reduce": 2 * ring} | whole).get(kind, ring)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> str:
  """The mesh axes along which devices of a group differ: "fsdp", "data+fsdp", or "" for one device each.

  Args:
    groups: [groups, members] partitions. mesh: size by axis; partition i of the program is the mesh's device number i.
  """
  places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # [axes, groups, members]
  differ = (places != places[:, :, :1]).any((1, 2))
  return "+".join(axis for axis, differs in zip(mesh, differ, strict=True) if differs)


def between_slices(computation: Computation, instruction: Instruction, num_slices: int) -> tuple[str, float]:
  """(kind, bytes that one device sends) of a transfer over the data centre's network, which is a `send`; ("", 0.0) if none."""
  kind = instruction.attribute(r'megascale_transfer_type="(\w+)"') if instruction.op == "send" else None
  if kind is None:
    return "", 0.0
  kind, size = kind.lower().replace("_", "-"), computation.operands(instruction)[0].nbytes
  return kind, 2 * size * (num_slices - 1) / num_slices if kind == "all-reduce" else size


def agreed_group_size(instruction: Instruction, num_partitions: int) -> int:
  """Devices of a group as the agreed method reads them: of a mesh whose devices are listed in another order, all."""
  text = instruction.attribute(r"replica_groups=(.*)") or ""
  return num_partitions if re.match(r"mesh\[[^\]]*\](?!\s*\{)", text) else groups_of(instruction, num_partitions).shape[1]


def groups_of(instruction: Instruction, num_partitions: int) -> np.ndarray:
  """The partitions that exchange something, [groups, members].

  HLO writes them as `{{0,1},{2,3}}`, as `[2,2]<=[4]T(1,0)`, or as axes of a mesh of its own; `{}` is all of them.
  """
  if pairs := instruction.attribute(r"source_target_pairs=\{(\{[\d,{}]*\})\}"):
    return _listed(pairs)
  text = instruction.attribute(r"replica_groups=(.*)") or ""
  if mesh := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))?\s*\{([^}]*)\}", text):
    return _of_mesh(*mesh.groups())
  if iota := re.match(r"\[(\d+),(\d+)\]<=(\S+)", text):
    return _iota(iota[3]).reshape(int(iota[1]), int(iota[2]))
  if listed := re.match(r"\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}", text):
    return _listed(listed[1])
  return np.arange(num_partitions)[None]


def _of_mesh(sizes: str, ids: str | None, wanted: str) -> np.ndarray:
  """`'x'=4,'y'=2`, `[4,2]T(1,0)` (the ids in the mesh's order, else rising) and `'y','x':(1)2`: y, and 2 of x behind 1."""
  dims, places = [], {}
  parts = {axis: (int(before), int(size)) for axis, before, size in re.findall(r"'([^']+)':\((\d+)\)(\d+)", wanted)}
  for axis, size in re.findall(r"'([^']+)'=(\d+)", sizes):
    before, inside = parts.get(axis, (1, int(size)))
    places[axis] = len(dims) + 1
    dims += [before, inside, int(size) // (before * inside)]
  members = [places[axis] for axis in re.findall(r"'([^']+)'", wanted)]
  others = [place for place in range(len(dims)) if place not in members]
  array = (_iota(ids) if ids else np.arange(math.prod(dims))).reshape(dims)
  return array.transpose([*others, *members]).reshape(-1, math.prod(dims[place] for place in members))


def _iota(text: str) -> np.ndarray:
  """`[4,2]T(1,0)`: the numbers from 0 in that shape, transposed; or a plain list of them."""
  found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if found is None:
    return np.array([int(i) for i in text.split(",")])
  dims = [int(size) for size in found[1].split(",")]
  order = [int(axis) for axis in found[2].split(",")] if found[2] else range(len(dims))
  return np.arange(math.prod(dims)).reshape(dims).transpose(order)


def _listed(text: str) -> np.ndarray:
  return np.array([[int(i) for i in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)])
