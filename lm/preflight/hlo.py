"""Reads the text of a compiled program (optimized, scheduled HLO) into instructions by computation, and loops' trip counts."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

# Bytes per element; types that are not here have one.
ITEM_BYTES = {
  **dict.fromkeys(("s4", "u4"), 0.5),
  **dict.fromkeys(("s16", "u16", "bf16", "f16"), 2),
  **dict.fromkeys(("s32", "u32", "f32"), 4),
  **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
# What hands a value on unchanged, as far as a loop's counter is concerned.
TRANSPARENT = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "opt-barrier", "broadcast")
MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
FOOTER = re.compile(r"\}(, execution_thread=.*)?")
ASSIGNMENT = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", re.DOTALL)
NAME = re.compile(r"%([\w.\-]+)")
MAX_ADDS = 64  # in the chain that updates a loop's counter


@dataclasses.dataclass(frozen=True)
class Array:
  """Element type and sizes of an array shape, or of one leaf of a tuple's."""

  dtype: str
  dims: tuple[int, ...]

  @property
  def nbytes(self) -> float:
    """Without padding."""
    return ITEM_BYTES.get(self.dtype, 1) * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """`%name = shape op(arguments), attributes`; operands are the names among the arguments."""

  name: str
  shape: str
  op: str
  arguments: str
  attributes: str
  root: bool = False

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of the instructions it reads."""
    return NAME.findall(self.arguments)

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """Of its result, the leaves of a tuple in order."""
    found = re.findall(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]", self.shape)
    return [Array(dtype, tuple(int(size) for size in dims.split(",") if size)) for dtype, dims in found]

  @property
  def nbytes(self) -> float:
    """Of all its arrays."""
    return sum(array.nbytes for array in self.arrays)

  def attribute(self, pattern: str) -> str | None:
    """The first group of a pattern in the attributes."""
    found = re.search(pattern, self.attributes)
    return found[1] if found else None

  def called(self, role: str = "calls|to_apply") -> str:
    """The computation it calls in a role: body, condition, calls or to_apply."""
    return self.attribute(rf"\b(?:{role})=%?([\w.\-]+)") or ""

  @property
  def op_name(self) -> str:
    """Where in the traced program it comes from."""
    return self.attribute(r'op_name="([^"]*)"') or ""

  @property
  def is_kernel(self) -> bool:
    """Whether it is a Pallas kernel of a TPU."""
    return self.op == "custom-call" and '"tpu_custom_call"' in self.attributes


class Computation(dict[str, Instruction]):
  """Instructions by name, in their order."""

  @functools.cached_property
  def root(self) -> Instruction:
    """Whose value it returns."""
    return next(instruction for instruction in self.values() if instruction.root)

  def operands(self, instruction: Instruction) -> list[Instruction]:
    """The instructions that one reads."""
    return [self[name] for name in instruction.operands]

  def source(self, name: str) -> Instruction:
    """Where a value is made, behind everything that only hands it on."""
    found = self[name]
    while found.op in TRANSPARENT and found.operands:
      found = self[found.operands[0]]
    return found

  def element(self, name: str, index: int) -> str:
    """The name of one element of a tuple."""
    return self.source(name).operands[index]

  def constant(self, name: str) -> int:
    """The value of a constant integer."""
    return int(self.source(name).arguments)


class Module:
  """computations: by name. entry: the one that runs. num_partitions: devices of the program.

  unknown_trips: why, by the name of each loop whose trips could not be read; its body then counts once.
  """

  def __init__(self, text: str):
    self.computations, self.entry = _parse(text)
    found = re.search(r"num_partitions=(\d+)", text[:200_000])
    self.num_partitions = int(found[1]) if found else 1
    self.unknown_trips: dict[str, str] = {}

  def __iter__(self) -> Iterator[tuple[Computation, Instruction]]:
    """Every instruction with its computation."""
    return ((computation, instruction) for computation in self.computations.values() for instruction in computation.values())

  def trips(self, computation: Computation, loop: Instruction) -> int:
    """How often a `while` runs its body: XLA's own note, else from first value, step and the constant it is compared to."""
    if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
      return int(known)
    try:
      slot, limit, direction = self._comparison(self.computations[loop.called("condition")])
      value = lambda index: computation.constant(computation.element(loop.operands[0], index))
      stop = limit if isinstance(limit, int) else value(int(limit.attribute(r"index=(\d+)") or ""))
      span = (stop - value(slot)) / _step(self.computations[loop.called("body")], slot)
      return math.floor(span) + 1 if direction in ("LE", "GE") else math.ceil(span)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as problem:
      self.unknown_trips[loop.name] = repr(problem)
      return 1

  def _comparison(self, condition: Computation) -> tuple[int, int | Instruction, str]:
    """(place of the counter in the loop's tuple, what it is compared to: a constant or an element too, direction)."""
    compare, caller, scope = condition.root, None, condition
    if compare.op == "fusion":
      caller, scope = compare, self.computations[compare.called()]
      compare = scope.root
    sides = []
    for name in compare.operands:
      made = scope.source(name)
      if caller and made.op == "parameter":  # of a fused comparison: what the fusion is given
        made = condition.source(caller.operands[int(made.arguments)])
      sides.append(made)
    (counter, limit), direction = sides, compare.attribute(r"direction=(\w+)") or ""
    if counter.op == "constant":
      counter, limit, direction = limit, counter, MIRRORED.get(direction, direction)
    slot = int(counter.attribute(r"index=(\d+)") or "")
    return slot, int(limit.arguments) if limit.op == "constant" else limit, direction


def _step(body: Computation, slot: int) -> int:
  """What one trip adds to the loop's counter, also by a chain of additions."""
  step, name = 0, body.element(body.root.name, slot)
  for _ in range(MAX_ADDS):
    made = body.source(name)
    if made.op == "get-tuple-element" and int(made.attribute(r"index=(\d+)") or "") == slot:
      return step
    if made.op != "add":
      raise ValueError(f"counter updated by {made.op}")
    which = [body.source(operand).op for operand in made.operands].index("constant")
    step, name = step + body.constant(made.operands[which]), made.operands[1 - which]
  raise ValueError("counter not found")


def _parse(text: str) -> tuple[dict[str, Computation], str]:
  """(computations by name, name of the entry)."""
  computations: dict[str, Computation] = {}
  entry, current, lines = "", None, []

  def close() -> None:
    if lines and current is not None:
      instruction = _instruction("\n".join(lines))
      current[instruction.name] = instruction
    lines.clear()

  for line in text.splitlines():
    if header := HEADER.match(line):
      close()
      current = computations[header[2]] = Computation()
      entry = header[2] if header[1] else entry
    elif FOOTER.fullmatch(line):
      close()
      current = None
    elif ASSIGNMENT.match(line):
      close()
      lines.append(line)
    elif lines:  # an attribute that goes on
      lines.append(line)
  return computations, entry


def _instruction(text: str) -> Instruction:
  found = ASSIGNMENT.match(re.sub(r"/\*index=\d+\*/", "", text))
  assert found is not None, text
  root, name, rest = found.groups()
  cut = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:cut], rest[cut:].lstrip()
  opened = rest.index("(")
  closed = _closing(rest, opened)
  return Instruction(name, shape, rest[:opened], rest[opened + 1 : closed], rest[closed + 1 :], bool(root))


def _closing(text: str, opened: int) -> int:
  """Where the parenthesis that opens there is closed."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, opened):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return found.start()
  raise ValueError(f"unbalanced parentheses: {text[opened : opened + 80]}")
