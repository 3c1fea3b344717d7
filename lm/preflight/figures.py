"""What a preflight finds, as one dict for JSON, and as lines for people."""

import dataclasses
import os
from typing import Any

import jax

from lm import chips
from lm.config import ConfigError
from lm.preflight import fit, measure, memory
from lm.preflight.memory import Step
from lm.program import Spec
from lm.run import Outline

HERE = "here"
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # of the environment, which decide what the compiler does
TABLE_ROWS = 8  # of collectives and of f32 matmuls that are shown; the JSON has all


def find_devices(topology: str, num_slices: int = 1) -> list[jax.Device]:
  """The devices of a topology ("v5e:4x4"), of several slices of it, or those that are attached ("here").

  Raises:
    ConfigError: an unknown topology, or no libtpu to ask.
  """
  if topology == HERE:
    return jax.devices()
  from jax.experimental import topologies

  several: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
  if topology.startswith("v4"):  # both cores of a chip as one device, as jax drives them
    several["chip_config_name"] = "megacore"
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **several).devices)
  except (jax.errors.JaxRuntimeError, RuntimeError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if "INVALID_ARGUMENT" not in reason:
      raise ConfigError(f"--topology={topology}: {reason}") from error
    examples = ", ".join((*chips.TOPOLOGIES, HERE))
    raise ConfigError(f"--topology={topology}: not a topology that libtpu knows; examples are {examples}") from error


def measure_step(outline: Outline, step: Step, topology: str) -> dict[str, Any]:
  """Everything that is known of a compiled step. Times are predictions; they are None where the chip is not known.

  Returns:
    fits, peak_bytes, hbm_bytes, memory (parts in bytes, their sum is the peak), model_flops and compiled_flops (per device and
    step; the latter with loops times their trips and attention as if unmasked), collectives, f32_matmuls, step_seconds, mfu,
    tokens_per_sec_per_chip, compile_seconds, hours, chip_hours, agreed (see `measure.agreed`), and what was compiled
  """
  cfg, spec = outline.config, step.program.spec
  devices, limit = spec.mesh.devices.size, memory.free_bytes(spec.mesh)
  chip = chips.find(spec.mesh.devices.flat[0].device_kind)
  tokens = cfg.batch_size * cfg.seq_len
  found: dict[str, Any] = {
    "fits": step.compiled is not None and step.peak_bytes <= limit,
    "peak_bytes": step.peak_bytes,
    "hbm_bytes": limit,
    "memory": dataclasses.asdict(step.memory),
    "model_flops": step.program.flops_per_token(cfg.seq_len) * tokens / devices,
    "compile_seconds": round(step.seconds, 2),
    **describe(outline, spec, topology),
  }
  if step.compiled is None:
    return found
  cost = measure.read(step.text, dict(spec.mesh.shape), chip)
  found |= {
    "compiled_flops": cost.totals["flops", "matmul"] + cost.totals["flops", "kernel whole"],
    "collectives": measure.collectives(cost),
    "f32_matmuls": measure.f32_matmuls(cost),
    "unknown_trip_counts": cost.module.unknown_trips,
  }
  if chip is None or not chip.usable_bytes:
    names = ("step_seconds", "mfu", "tokens_per_sec_per_chip", "hours", "chip_hours")
    return found | dict.fromkeys(names) | {"notes": [*outline.notes, "no prediction of time: only TPUs' compilers give cycles"]}
  between = cost.sum("dcn") / chip.dcn_bytes_per_sec
  time = measure.seconds(cost, chip) | {"between_slices_s": between}
  time["step_s"] = seconds = max(time["step_s"], between)
  hours = seconds * outline.total_steps / 3600 if outline.total_steps else None
  return found | {
    "prediction": {"method": measure.METHOD, **time},
    "step_seconds": seconds,
    "mfu": found["model_flops"] / chip.peak_flops / seconds,
    "tokens_per_sec_per_chip": tokens / seconds / devices,
    "hours": hours,
    "chip_hours": hours * devices if hours is not None else None,
    "agreed": measure.agreed(cost, chip, topology) | measure.of_compiler(step.compiled, chip),
  }


def describe(outline: Outline, spec: Spec, topology: str) -> dict[str, Any]:
  """What was compiled: devices, mesh, batch, model, and the flags of the compiler."""
  cfg = outline.config
  return {
    "topology": topology,
    "device_kind": spec.mesh.devices.flat[0].device_kind,
    "devices": spec.mesh.devices.size,
    "mesh": dict(spec.mesh.shape),
    "dtype": spec.model.dtype,
    "remat": spec.model.remat,
    "batch_size": cfg.batch_size,
    "seq_len": cfg.seq_len,
    "tokens_per_device": fit.tokens_per_device(outline, spec),
    "accumulation": spec.accumulation,
    "total_steps": outline.total_steps,
    "params": outline.program.num_params,
    "versions": {"jax": jax.__version__, "libtpu": _libtpu_version()},
    "flags": {name: os.environ[name] for name in FLAGS if os.environ.get(name)},
    "notes": list(outline.notes),
  }


def words(found: dict[str, Any]) -> str:
  """The figures as lines."""
  mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1) or "one device"
  over = found["peak_bytes"] - found["hbm_bytes"]
  verdict = "fits" if found["fits"] else f"does not fit, {fit.gib(max(over, 0))} too much"
  lines = [
    *found["notes"],
    f"{found['devices']} x {found['device_kind']} ({found['topology']}): {mesh}; compute in {found['dtype']}",
    f"step: {found['batch_size']:,} rows of {found['seq_len']:,} tokens, {found['tokens_per_device']:,} tokens per device"
    f" at once (accumulation {found['accumulation']}), remat {found['remat']}; {found['params']['total']:,} parameters",
    f"memory: {verdict}: peak {fit.gib(found['peak_bytes'])} of {fit.gib(found['hbm_bytes'])} on each device",
    "  " + ", ".join(f"{name} {fit.gib(size)}" for name, size in found["memory"].items()),
    f"compiled in {found['compile_seconds']:.1f} s",
  ]
  if "compiled_flops" not in found:
    return "\n".join(lines)
  ratio = found["compiled_flops"] / found["model_flops"]
  lines.append(
    f"FLOPs of a step and device: model {found['model_flops']:.4g} (6 N + 12 L H C T per token), compiled"
    f" {found['compiled_flops']:.4g}, {ratio:.3f} of it"
  )
  for each in found["collectives"][:TABLE_ROWS]:
    sent, share = fit.gib(each["sent_bytes"]), each["async_share"]
    lines.append(
      f"  {each['kind']} along {each['axes'] or '-'}: {each['runs']:,} times, sends {sent}, {share:.0%} asynchronous"
    )
  lines += [f"  f32 matmul: {each['flops']:.3g} FLOPs, {each['op_name']}" for each in found["f32_matmuls"][:TABLE_ROWS]]
  if found["step_seconds"]:
    lines += _predicted(found)
  return "\n".join(lines)


def _predicted(found: dict[str, Any]) -> list[str]:
  time = found["prediction"]
  parts = ", ".join(f"{name.removesuffix('_s')} {value:.4g} s" for name, value in time.items() if name[-2:] == "_s")
  lines = [
    f"predicted, not measured: {found['step_seconds']:.4g} s per step, MFU {found['mfu']:.3f},"
    f" {found['tokens_per_sec_per_chip']:,.0f} tokens/s per chip",
    f"  {parts}",
    f"  {time['method']}",
  ]
  if found["hours"] is not None:
    lines.append(f"predicted: {found['total_steps']:,} steps in {found['hours']:,.2f} h, {found['chip_hours']:,.1f} chip-hours")
  return lines


def _libtpu_version() -> str | None:
  from importlib import metadata

  try:
    return metadata.version("libtpu")
  except metadata.PackageNotFoundError:
    return None
