"""What a compiled train step takes on a device, in parts that add up to its peak, and what a device has."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lm import chips, device
from lm.preflight.hlo import Computation, Module
from lm.program import Program
from lm.shapes import Batch

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# How XLA says what a program would have needed, all of it together.
NEEDED = re.compile(r"(?:Used|required for HLO temporaries \() ?([\d.]+)([KMGT]?)")


@dataclasses.dataclass(frozen=True)
class Memory:
  """[bytes] on each device at the peak; what a step gives back in the place of what it was given counts once."""

  parameters: int  # trainable and frozen
  optimizer: int  # moments, and what else the state holds
  inputs: int  # the batch, the key, and what the layout of the arguments adds
  activations: int  # what loops over layers keep for the backward pass; 0 where the layers are unrolled
  temporaries: int  # everything else: gradients, what a layer needs while it runs; what did not fit is not told apart

  @property
  def peak(self) -> int:
    """All of it."""
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Step:
  """A train step that was compiled. compiled: None where the compiler refused it, as it does not fit the device."""

  program: Program
  peak_bytes: int
  seconds: float
  compiled: jax.stages.Compiled | None

  @property
  def text(self) -> str:
    """The optimized program; "" where there is none."""
    return (self.compiled.as_text() or "") if self.compiled else ""

  @property
  def memory(self) -> Memory:
    """The parts of the peak. The text is read for them, which takes seconds for a large program."""
    state = self.program.abstract_sharded
    parameters = _bytes_on_device((state.params, state.frozen))
    optimizer = _bytes_on_device(state.replace(params={}, frozen={}))
    inputs = 0
    if self.compiled:
      inputs = max(_sizes(self.compiled).argument_size_in_bytes - parameters - optimizer, 0)
    rest = max(self.peak_bytes - parameters - optimizer - inputs, 0)
    activations = min(kept_for_backward(Module(self.text)), rest) if self.compiled else 0
    return Memory(parameters, optimizer, inputs, activations, rest - activations)


def compile_step(program: Program, batch: Batch) -> Step:
  """Compiles the train step of a batch's shape; one that is compiled already costs nothing."""
  began = time.perf_counter()
  try:
    compiled = program.train_step(batch)
  except jax.errors.JaxRuntimeError as error:
    needed = NEEDED.search(str(error))
    if not is_exhausted(error) or needed is None:
      raise
    return Step(program, round(float(needed[1]) * UNITS[needed[2]]), time.perf_counter() - began, None)
  found = _sizes(compiled)
  total = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
  # A TPU's peak knows which temporaries live at once; it counts the host's memory too. Elsewhere it leaves temporaries out.
  knows = program.spec.mesh.devices.flat[0].platform == "tpu" and not found.host_temp_size_in_bytes
  peak = found.peak_memory_in_bytes if knows else total
  return Step(program, peak, time.perf_counter() - began, compiled)


def is_exhausted(error: jax.errors.JaxRuntimeError) -> bool:
  """Whether it says that memory did not suffice."""
  return "RESOURCE_EXHAUSTED" in str(error)


def free_bytes(mesh: jax.sharding.Mesh) -> int:
  """What a program may take on one device of a mesh: free now where it is attached, what its kind has where it is not.

  Of several processes it is the least that one of them has, so that all decide alike.

  Raises:
    ValueError: a kind of device that is neither attached nor in the table.
  """
  devices = list(mesh.devices.flat)
  if devices[0] not in jax.devices():
    chip = chips.find(devices[0].device_kind)
    if chip is None or not chip.usable_bytes:
      raise ValueError(f"{devices[0].device_kind}: its memory is not known; known are {', '.join(chips.CHIPS)}")
    return chip.usable_bytes
  own = [each for each in devices if each.process_index == jax.process_index()]
  stats = own[0].memory_stats() or {}
  free = device.available_memory() // len(own)
  if "bytes_limit" in stats:
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  if jax.process_count() == 1:
    return free
  return int(multihost_utils.process_allgather(np.int32(free >> 20)).min()) << 20


def kept_for_backward(module: Module) -> int:
  """Bytes that loops of the forward pass write once per trip: [L, ...] of every layer, which the backward pass reads."""
  total = 0.0
  for computation, loop in module:
    if loop.op == "while" and "jvp(" in loop.op_name and "transpose(" not in loop.op_name:
      body, trips = module.computations[loop.called("body")], module.trips(computation, loop)
      stacks = [i for i, array in enumerate(loop.arrays) if array.dims[:1] == (trips,) and not _hands_on(body, i)]
      total += sum(loop.arrays[i].nbytes for i in stacks)
  return round(total)


def _sizes(compiled: jax.stages.Compiled) -> Any:
  found = compiled.memory_analysis()
  assert found is not None, "the CPU, GPU and TPU compilers all say what a program takes"
  return found


def _hands_on(body: Computation, index: int) -> bool:
  """Whether a loop's body gives an element of its tuple back as it was."""
  made = body.source(body.element(body.root.name, index))
  return made.op == "get-tuple-element" and made.attribute(r"index=(\d+)") == str(index)


def _bytes_on_device(tree: Any) -> int:
  """Of abstract arrays with their shardings."""
  size = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(size(leaf) for leaf in jax.tree.leaves(tree))
