"""The figures of one compiled step under one agreed method, so that two codebases can be compared by them.

All of them are the compiler's estimates per device and step, no measurements: predicted seconds compare programs of one
compiler version, and are not to be quoted as a throughput.
"""

from collections.abc import Mapping
from typing import Any

from lm.chips import Chip
from lm.preflight.collectives import KINDS, started_channels, starts_one
from lm.preflight.cost import Cost
from lm.preflight.hlo import Module

METHOD = (
  "prediction, not a measurement: max(compute + kernels + synchronous collectives, all collectives, prefetch, between slices),"
  " where compute is the compiler's estimated cycles over its clock with loops times their trips, kernels are their FLOPs at"
  " the peak, collectives are bytes by ring algorithms over one axis of links, and slices share the data centre's network"
)
MEMORY = ("argument_size", "output_size", "alias_size", "temp_size", "peak_memory", "generated_code_size")
ANALYSED = ("flops", "transcendentals", "bytes accessed")


def read(text: str, mesh: Mapping[str, int], chip: Chip | None) -> Cost:
  """The cost of a program from its text. mesh: size by axis."""
  return Cost(Module(text), mesh, chip.mxu if chip else 128)


def seconds(cost: Cost, chip: Chip, bytes_key: str = "sent") -> dict[str, float]:
  """Where the predicted time of a step goes, and `step_s`, by METHOD. bytes_key: whose count of what collectives send."""
  compute = cost.sum("cycles") / chip.clock
  kernels = cost.totals["flops", "kernel padded"] / chip.peak_flops
  sent = {when: count / chip.axis_bytes_per_sec for when, count in cost.by(bytes_key, 3).items()}
  sync, every = sent.get("sync", 0.0), sent.get("sync", 0.0) + sent.get("async", 0.0)
  prefetch = cost.totals["copied", "prefetch"] / chip.hbm_bytes_per_sec
  return {
    "compute_s": compute,
    "kernel_s": kernels,
    "collective_s": every,
    "collective_sync_s": sync,
    "prefetch_s": prefetch,
    "step_s": max(compute + kernels + sync, every, prefetch),
  }


def agreed(cost: Cost, chip: Chip, topology: str) -> dict[str, Any]:
  """The figures that the text alone gives, under the names that were agreed on."""
  cycles, sent = cost.by("cycles", 1), cost.by("agreed", 3)
  time = seconds(cost, chip, "agreed")
  work = cost.totals["flops", "matmul"] + cost.totals["flops", "kernel"]
  return {
    "topology": topology,
    "devices": cost.module.num_partitions,
    "clock_ghz": round(chip.clock / 1e9, 3),
    "cycles": cost.sum("cycles"),
    "cycles_by_kind": dict(sorted(cycles.items(), key=lambda item: -item[1])),
    "matmul_flops": cost.totals["flops", "matmul"],
    "kernel_flops": cost.totals["flops", "kernel"],
    "kernels": dict(cost.kernels),
    "kernels_without_estimate": cost.totals["kernels",],
    "collectives_in_text": _count_in_text(cost.module),
    "collectives_run": cost.by("runs", 1),
    "sent_bytes": {kind: round(count) for kind, count in cost.by("agreed", 1).items()},
    "sent_bytes_async": round(sent.get("async", 0)),
    "sent_bytes_sync": round(sent.get("sync", 0)),
    "prefetch_bytes": round(cost.totals["copied", "prefetch"]),
    "host_bytes": round(cost.totals["copied", "host"]),
    **time,
    "hardware_flops_utilization": work / chip.peak_flops / time["step_s"] if time["step_s"] else 0.0,
    "loops": cost.loops,
    "unknown_trip_counts": cost.module.unknown_trips,
  }


def of_compiler(compiled: Any, chip: Chip) -> dict[str, Any]:
  """What the compiler says itself, under the names that were agreed on. Its FLOPs count the body of a loop once."""
  memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}
  sizes = {name: getattr(memory, f"{name}_in_bytes") for name in MEMORY if hasattr(memory, f"{name}_in_bytes")}
  return {
    "memory": sizes,
    "hbm_share": sizes.get("peak_memory", 0) / chip.hbm_bytes,
    "xla_cost_analysis": {name: analysis[name] for name in ANALYSED if name in analysis},
  }


def collectives(cost: Cost) -> list[dict[str, Any]]:
  """By kind and mesh axes, the most bytes first: how often they run, bytes that one device sends, the share that may hide."""
  found = []
  for kind, axes in {key[1:3] for key in cost.totals if key[0] == "runs"}:
    sent = {when: cost.totals["sent", kind, axes, when] for when in ("async", "sync")}
    total = sum(sent.values())
    share = sent["async"] / total if total else 0.0
    runs = cost.totals["runs", kind, axes]
    found.append({"kind": kind, "axes": axes, "runs": runs, "sent_bytes": round(total), "async_share": round(share, 4)})
  for kind, runs in cost.by("dcn runs", 1).items():
    sent = round(cost.totals["dcn", kind])
    found.append({"kind": kind, "axes": "replica", "runs": runs, "sent_bytes": sent, "async_share": 1.0})
  return sorted(found, key=lambda each: (-each["sent_bytes"], each["kind"], each["axes"]))


def f32_matmuls(cost: Cost) -> list[dict[str, Any]]:
  """Products of two fp32 arrays, by where they come from, the most FLOPs first."""
  found = [{"op_name": key[1], "flops": value} for key, value in cost.totals.items() if key[0] == "f32"]
  return sorted(found, key=lambda each: (-each["flops"], each["op_name"]))


def _count_in_text(module: Module) -> int:
  started = started_channels(module)
  return sum(
    starts_one(computation) or instruction.attribute(r"channel_id=(\d+)") not in started
    for computation, instruction in module
    if instruction.op.removesuffix("-start") in KINDS
  )
