"""Whether a run's step fits its devices, before the first step; and what to change where not, with the same global batch."""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator

import jax

from lm import chips, config, plug, sharding
from lm.config import Plug
from lm.peft.peft import Peft
from lm.preflight import memory
from lm.preflight.memory import Step
from lm.program import Program, Spec, make_program
from lm.quantizers.quantizer import Quantizer
from lm.run import Outline

TRIES = 3  # compiled for each setting that may help
# Offloading is left to who has measured it: what it costs is the host's bandwidth, which nothing here predicts.
POLICIES = tuple(remat for remat in config.REMAT if remat != "offload")


class DoesNotFitError(ValueError):
  """The step does not fit the devices. The first line says by how much, those behind it the parts and what would help."""


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A setting that may help: what to type, and the step with it."""

  setting: str
  step: Step


def change(
  spec: Spec, remat: str | None = None, peft: Peft | None = None, quantizer: Quantizer | None = None, **fields
) -> Spec:
  """The spec with another policy of recomputation, PEFT method, quantizer or fields of its own."""
  model = dataclasses.replace(spec.model, remat=remat or spec.model.remat, quantizer=quantizer or spec.model.quantizer)
  intercept = peft.intercept if peft else spec.objective.intercept
  objective = dataclasses.replace(spec.objective, model=model, intercept=intercept)
  return dataclasses.replace(spec, model=model, objective=objective, peft=peft or spec.peft, **fields)


def tokens_per_device(outline: Outline, spec: Spec) -> int:
  """Tokens that a device takes at once."""
  cfg, parts = outline.config, sharding.num_batch_shards(spec.mesh) * spec.mesh.shape["sequence"]
  return cfg.batch_size * cfg.seq_len // (parts * spec.accumulation)


def accumulations(outline: Outline, mesh: jax.sharding.Mesh) -> list[int]:
  """Numbers of micro-batches that a step may have, rising; 1 alone where a task compares all rows of a batch."""
  numbers = sharding.accumulations(outline.config.batch_size, mesh)
  return numbers[:1] if outline.program.spec.objective.needs_whole_batch else numbers


def settle(outline: Outline, least: int = 1) -> Program:
  """The outline's program; under tokens_per_device='auto' that of the fewest micro-batches which fits, compiled.

  Args:
    least: micro-batches to begin with: those that a run had before it was interrupted.
  """
  spec = outline.program.spec
  if outline.config.tokens_per_device != "auto":
    return outline.program
  limit, program = memory.free_bytes(spec.mesh), outline.program
  numbers = accumulations(outline, spec.mesh)
  for n in (n for n in numbers if n >= min(least, numbers[-1])):
    program = make_program(change(spec, accumulation=n))
    if all(memory.compile_step(program, batch).peak_bytes <= limit for batch in outline.batches):
      break
  return program  # the last one, where none fits: `check` says so


def check(outline: Outline) -> Step:
  """Compiles the train step for every shape and returns the largest, once it is known to fit.

  Raises:
    DoesNotFitError: the peak is above what the devices have free.
  """
  limit = memory.free_bytes(outline.program.spec.mesh)
  step = largest(outline)
  if step.peak_bytes > limit:
    raise DoesNotFitError(explain(outline, step, limit))
  return step


@contextlib.contextmanager
def watch(outline: Outline) -> Generator[None]:
  """Turns the devices' running out of memory inside it into DoesNotFitError."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_exhausted(error):
      raise
    step = largest(outline)
    found = alternatives(outline, step)
    raise DoesNotFitError(f"{str(error).splitlines()[0]}\n{table(outline, step, found)}") from error


def largest(outline: Outline) -> Step:
  """The compiled step of the shape that takes most."""
  return max((memory.compile_step(outline.program, batch) for batch in outline.batches), key=lambda step: step.peak_bytes)


def explain(outline: Outline, step: Step, limit: int) -> str:
  """By how much the step does not fit, its parts, and settings that help."""
  over = step.peak_bytes - limit
  head = f"the train step needs {gib(step.peak_bytes)} on each device, {gib(limit)} are free: {gib(over)} too much"
  return f"{head}\n{table(outline, step, alternatives(outline, step, limit))}"


def table(outline: Outline, step: Step, found: list[Candidate]) -> str:
  """The parts of a step's peak, and settings with the peak of each."""
  spec = outline.program.spec
  parts = ", ".join(f"{name} {gib(size)}" for name, size in dataclasses.asdict(step.memory).items())
  now = f"  now {tokens_per_device(outline, spec):,} tokens per device, remat {spec.model.remat}: {parts}"
  return f"{now}\n{ways_out(found)}"


def ways_out(found: list[Candidate]) -> str:
  """Settings with the peak of each."""
  lines = [f"  with {each.setting}: {gib(each.step.peak_bytes)} on each device, the global batch as it is" for each in found]
  return "\n".join(lines or ["  no setting that was tried takes less; use more devices or a smaller model"])


def alternatives(outline: Outline, now: Step, limit: int = 0) -> list[Candidate]:
  """Up to three settings, each with the step that it would give: fewer tokens at once, more recomputed, LoRA or fewer bits.

  Each is tried in growing strength until it fits the limit, TRIES times at most; one that saves nothing is left out.
  """
  found = []
  for options in (_fewer_tokens(outline), _more_remat(outline), _fewer_weights(outline)):
    best = None
    for setting, program in options:
      candidate = Candidate(setting, largest(dataclasses.replace(outline, program=program)))
      best = candidate if best is None or candidate.step.peak_bytes < best.step.peak_bytes else best
      if best.step.peak_bytes <= limit:
        break
    found += [best] if best and best.step.peak_bytes < now.peak_bytes else []
  return found


def gib(size: float) -> str:
  """Bytes for people."""
  return f"{size / chips.GIB:.2f} GiB" if size >= chips.GIB / 10 else f"{size / (1 << 20):.2f} MiB"


def _fewer_tokens(outline: Outline) -> Iterator[tuple[str, Program]]:
  spec = outline.program.spec
  more = [n for n in accumulations(outline, spec.mesh) if n > spec.accumulation]
  for n in (*more[: TRIES - 1], *more[-1:])[:TRIES]:
    changed = change(spec, accumulation=n)
    yield f"--config.tokens_per_device={tokens_per_device(outline, changed)}", Program(changed)


def _more_remat(outline: Outline) -> Iterator[tuple[str, Program]]:
  spec = outline.program.spec
  stronger = config.REMAT[config.REMAT.index(spec.model.remat) + 1 :]
  for remat in [remat for remat in stronger if remat in POLICIES][:TRIES]:
    yield f"--config.remat={remat}", Program(change(spec, remat=remat))


def _fewer_weights(outline: Outline) -> Iterator[tuple[str, Program]]:
  """Of those that train, or of the bytes of those that do not."""
  spec = outline.program.spec
  if outline.config.peft == Plug("full"):
    with contextlib.suppress(ValueError):  # an optimizer whose patterns name no parameter that LoRA trains
      yield "--config.peft=lora", Program(change(spec, peft=plug.make("peft", Plug("lora"))))
  elif spec.model.quantizer is None:
    with contextlib.suppress(ValueError):  # a method that trains kernels, or sizes that the block does not divide
      yield "--config.quantizer=nf4", Program(change(spec, quantizer=plug.make("quantizer", Plug("nf4"))))
