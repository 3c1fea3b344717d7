"""Which mesh, recomputation and tokens per device are predicted to be fastest, of those that fit; the global batch stays."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from lm import config, sharding
from lm.preflight import figures, fit, memory
from lm.program import Program
from lm.run import Outline

SEARCHED = ("data", "fsdp", "tensor")
TENSOR_SIZES = (1, 2, 4, 8)
TRIES = 3  # sizes of micro-batches for each mesh and policy, the largest first, until one fits


def sweep(outline: Outline, devices: list[jax.Device], topology: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
  """The figures of all that fit, the predicted fastest first; where nothing predicts a time, the smallest first.

  Args:
    say: called with a line for every step that was compiled, in turn.
  """
  found = []
  points = [(sizes, remat) for sizes in meshes(outline, len(devices)) for remat in fit.POLICIES]
  for number, (sizes, remat) in enumerate(points, 1):
    mesh = sharding.make_mesh(sizes, devices)
    for accumulation in fit.accumulations(outline, mesh)[:TRIES]:
      spec = fit.change(outline.program.spec, remat=remat, mesh=mesh, accumulation=accumulation)
      tried = dataclasses.replace(outline, program=Program(spec))
      step = fit.largest(tried)
      fits = step.compiled is not None and step.peak_bytes <= memory.free_bytes(mesh)
      shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
      tokens = fit.tokens_per_device(tried, spec)
      say(
        f"{number}/{len(points)} {shape}; remat {remat}; {tokens:,} tokens per device: {fit.gib(step.peak_bytes)},"
        f" {'fits' if fits else 'does not fit'} ({step.seconds:.0f} s)"
      )
      if fits:
        found.append(figures.measure_step(tried, step, topology))
        break
  return sorted(found, key=lambda each: (each["step_seconds"] or 0.0, each["peak_bytes"]))


def meshes(outline: Outline, num_devices: int) -> list[config.Mesh]:
  """Ways to divide the devices: tensor of up to 8 that divides the heads, the rest fsdp, data, or two of data.

  Other axes are as the config says. What does not divide the batch is left out.
  """
  cfg, heads = outline.config, outline.program.spec.model.cfg.kv_heads
  others = {axis: max(size, 1) for axis, size in dataclasses.asdict(cfg.mesh).items() if axis not in SEARCHED}
  rest = num_devices // math.prod(others.values())
  found = []
  for tensor in (size for size in TENSOR_SIZES if rest % size == 0 and heads % size == 0):
    each = rest // tensor
    for data in sorted({1, 2, each} if each % 2 == 0 else {1, each}):
      if cfg.batch_size % (each * others["replica"] * others["expert"]) == 0:
        found.append(dataclasses.replace(cfg.mesh, **others, data=data, fsdp=each // data, tensor=tensor))
  return found


def words(found: list[dict[str, Any]]) -> str:
  """A line for each, in their order, with what to type."""
  if not found:
    return "nothing that was tried fits"
  lines = []
  for each in found:
    mesh = " ".join(f"--config.mesh.{axis}={size}" for axis, size in each["mesh"].items())
    time = f"{each['step_seconds']:.4g} s predicted, MFU {each['mfu']:.3f}" if each["step_seconds"] else "no prediction"
    lines.append(
      f"{time}, {fit.gib(each['peak_bytes'])}: {mesh} --config.remat={each['remat']}"
      f" --config.tokens_per_device={each['tokens_per_device']}"
    )
  return "\n".join(lines)
