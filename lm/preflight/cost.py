"""What one run of a compiled program costs: bodies of loops count once per trip, which XLA's own analysis does not do."""

import collections
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from lm.preflight import collectives, flops
from lm.preflight.hlo import Computation, Instruction, Module

COPIES = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
OVERLAPPED = ("async-start", "call-start")  # beside the TensorCore's own work
NO_ESTIMATE = 1 << 62  # the largest int64 stands in the place of cycles that are not known

# What is counted, by a tuple that begins with what it is:
#   ("cycles", kind), ("flops", kind), ("f32", op_name), ("kernels",) without a known cost, ("copied", "host" or "prefetch"),
#   ("runs", kind, axes), ("sent", kind, axes, "async" or "sync"), ("agreed", ...) the same as the agreed method counts it,
#   ("dcn runs", kind), ("dcn", kind) bytes sent between slices, which the agreed method leaves out
Totals = collections.Counter[tuple[str, ...]]


@dataclasses.dataclass(eq=False)
class Cost:
  """Totals of a module, per device.

  mesh: size by axis, in the order of the program's partitions. mxu: rows of a matrix unit.
  totals, loops ({"op", "trips", "runs"}) and kernels (runs by name) are what is found.
  """

  module: Module
  mesh: Mapping[str, int]
  mxu: int

  def __post_init__(self):
    self._started = collectives.started_channels(self.module)
    self._kernels = flops.Kernels(self.module, self.mxu)
    self.loops: list[dict[str, Any]] = []
    self.kernels: collections.Counter[str] = collections.Counter()
    self.totals = self._cost(self.module.entry, False, False)
    self._record_runs(self.module.entry, 1)

  def sum(self, *key: str) -> float:
    """The sum over everything that begins with a key: sum("sent") is all bytes sent."""
    return sum(value for found, value in self.totals.items() if found[: len(key)] == key)

  def by(self, first: str, index: int) -> dict[str, float]:
    """Sums by one part of the keys that begin with `first`: by("sent", 1) is bytes by kind."""
    found: dict[str, float] = {}
    for key, value in self.totals.items():
      if key[0] == first:
        found[key[index]] = found.get(key[index], 0) + value
    return found

  @functools.cache  # noqa: B019 - it lives as long as the figures are read
  def _cost(self, name: str, fused: bool, overlapped: bool) -> Totals:
    """Of one execution of a computation. fused: whether its cycles stand at its caller. overlapped: whether it runs beside."""
    computation, total = self.module.computations[name], Totals()
    starts = collectives.starts_one(computation)
    for instruction in computation.values():
      inner = self._inner(computation, instruction, fused, overlapped) + self._own(computation, instruction)
      total.update(inner)
      kind = collectives.kind_of(name, instruction)
      if kind and (starts or instruction.attribute(r"channel_id=(\d+)") not in self._started):
        total.update(self._collective(computation, instruction, kind, starts or overlapped))
      cycles = int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
      if cycles and not fused and cycles < NO_ESTIMATE:
        total["cycles", _label(instruction, inner)] += cycles
    return total

  def _inner(self, computation: Computation, instruction: Instruction, fused: bool, overlapped: bool) -> Totals:
    """What the computations that it calls cost."""
    if instruction.op == "while":
      body, trips = self._cost(instruction.called("body"), fused, overlapped), self.module.trips(computation, instruction)
      return Totals({key: value * trips for key, value in body.items()})
    if instruction.op == "conditional":  # the dearest branch
      costs = [self._cost(branch, fused, overlapped) for branch in _branches(instruction)]
      return max(costs, key=lambda cost: sum(value for key, value in cost.items() if key[0] == "cycles"), default=Totals())
    if instruction.op == "call":
      return self._cost(instruction.called(), fused, overlapped)
    if instruction.op in OVERLAPPED:
      return self._cost(instruction.called(), True, True)
    if instruction.op == "fusion":
      return self._cost(instruction.called(), True, overlapped)
    return Totals()

  def _own(self, computation: Computation, instruction: Instruction) -> Totals:
    """What it costs itself, collectives and cycles left out."""
    if instruction.op in ("convolution", "dot"):
      count = flops.of_matmul(computation, instruction)
      wide = all(operand.arrays[0].dtype == "f32" for operand in computation.operands(instruction)[:2])
      return Totals({("flops", "matmul"): count} | ({("f32", instruction.op_name or instruction.name): count} if wide else {}))
    if instruction.is_kernel:
      masked, padded, whole = self._kernels.flops(computation, instruction)
      found = {("flops", "kernel"): masked, ("flops", "kernel padded"): padded, ("flops", "kernel whole"): whole}
      return Totals(found | {("kernels",): int(not masked)})
    kind, sent = collectives.between_slices(computation, instruction, self.mesh.get("replica", 1))
    if kind:
      return Totals({("dcn runs", kind): 1, ("dcn", kind): sent})
    if instruction.op in COPIES:
      moved = min((array.nbytes for array in instruction.arrays if array.dims), default=0)
      return Totals({("copied", "host" if "S(5)" in instruction.shape else "prefetch"): moved})
    return Totals()

  def _collective(self, computation: Computation, instruction: Instruction, kind: str, hidden: bool) -> Totals:
    num_partitions = self.module.num_partitions
    groups = collectives.groups_of(instruction, num_partitions)
    axes = collectives.axes_of(groups, self.mesh)
    when = "async" if hidden or instruction.op.endswith("-start") else "sync"
    sent = collectives.sent_bytes(computation, instruction, kind, groups.shape[1])
    agreed = collectives.sent_bytes(computation, instruction, kind, collectives.agreed_group_size(instruction, num_partitions))
    return Totals({("runs", kind, axes): 1, ("sent", kind, axes, when): sent, ("agreed", kind, axes, when): agreed})

  def _record_runs(self, name: str, times: int) -> None:
    """Keeps loops and kernels with how often they run."""
    computation = self.module.computations[name]
    for instruction in computation.values():
      if instruction.op == "while":
        trips = self.module.trips(computation, instruction)
        self.loops.append({"op": instruction.op_name or None, "trips": trips, "runs": times * trips})
        self._record_runs(instruction.called("body"), times * trips)
      elif instruction.op in ("call", *OVERLAPPED):
        self._record_runs(instruction.called(), times)
      elif instruction.is_kernel:
        self.kernels[instruction.name.rstrip(".0123456789")] += times


def _label(instruction: Instruction, cost: Totals) -> str:
  """What its cycles are counted as."""
  if instruction.op in ("convolution", "dot") or instruction.op == "fusion" and cost["flops", "matmul"]:
    return "matmul fusion"
  return "other fusion" if instruction.op == "fusion" else instruction.op


def _branches(instruction: Instruction) -> list[str]:
  listed = (instruction.attribute(r"branch_computations=\{([^}]*)\}") or "").split(",")
  named = [instruction.called("true_computation"), instruction.called("false_computation")]
  return [name for name in (*(name.strip().lstrip("%") for name in listed), *named) if name]
