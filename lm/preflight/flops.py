"""FLOPs of the matrix products and of the Pallas kernels in a compiled program, from their shapes."""

import math
import re

from lm.preflight.hlo import Computation, Instruction, Module

FLOATS = ("bf16", "f16", "f32")
ATTENTION = re.compile(r"splash|flash")


def of_matmul(computation: Computation, instruction: Instruction) -> float:
  """Twice the multiplications of a dot or a convolution that touch no padding."""
  left, right = (operand.arrays[0].dims for operand in computation.operands(instruction)[:2])
  out = instruction.arrays[0].dims
  if instruction.op == "dot":
    contracted = (instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",")
    return 2 * math.prod(out) * math.prod(left[int(dim)] for dim in contracted if dim)
  labels = re.match(r"([\w?]+)_([\w?]+)->([\w?]+)", instruction.attribute(r"dim_labels=(\S+?)(?:,|\s|$)") or "")
  assert labels is not None, instruction
  of_left, of_right, of_out = labels.groups()
  window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute(r"window=\{([^}]*)\}") or ""))
  total = 2 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
  for label in filter(str.isdigit, of_out):
    each = {key: value.split("x")[int(label)] for key, value in window.items()}
    low, stride = int(each.get("pad", "0_0").split("_")[0]), int(each.get("stride", 1))
    dilation = int(each.get("lhs_dilate", 1)), int(each.get("rhs_dilate", 1))
    sizes = out[of_out.index(label)], right[of_right.index(label)], left[of_left.index(label)]
    total *= _meetings(sizes, low, stride, dilation)
  return total


def _meetings(sizes: tuple[int, int, int], low: int, stride: int, dilation: tuple[int, int]) -> int:
  """Pairs (output position, tap of the kernel) of one dim of a convolution's window that meet an element of the input.

  Args:
    sizes: of output, kernel and input. low: padding in front. dilation: of input and kernel.
  """
  (positions, taps, size), (spread, tap_spread), pairs = sizes, dilation, 0
  period = spread // math.gcd(spread, stride)
  for tap in range(taps):
    shift = low - tap * tap_spread  # output position o reads place o * stride - shift of the dilated input
    first = max(0, -(-shift // stride))
    last = min(positions - 1, ((size - 1) * spread + shift) // stride)
    first = next((o for o in range(first, first + period) if (o * stride - shift) % spread == 0), last + 1)
    pairs += max(0, (last - first) // period + 1)
  return pairs


class Kernels:
  """FLOPs of Pallas kernels. Those of attention state none: they follow from the shapes of queries and keys."""

  def __init__(self, module: Module, mxu: int):
    self._mxu = mxu
    self._fused_backward = not any(re.search(r"(splash|flash).*dq", instruction.name) for _, instruction in module)

  def flops(self, computation: Computation, instruction: Instruction) -> tuple[float, float, float]:
    """(FLOPs under the causal mask, the same with head_dim padded to the matrix unit, without a mask); zeros if unknown.

    Products with the matrix of scores: forward 2, queries' gradient 3, keys' and values' 4, all gradients in one 5. A causal
    mask over n x n blocks leaves (n + 1) / 2n of them.
    """
    name = instruction.name + "/".join(instruction.op_name.split("/")[-3:])
    if not ATTENTION.search(name):
      stated = float(instruction.attribute(r'"cost_estimate":\{[^}]*"flops":"?(\d+)') or 0)
      return stated, stated, stated
    arrays = [array for operand in computation.operands(instruction) for array in operand.arrays]
    (*heads, q_len, head_dim), key = [a.dims for a in arrays if a.dtype in FLOATS and len(a.dims) > 2][:2]
    products = 4 + self._fused_backward if "dkv" in name else 3 if "dq" in name else 2
    blocks = max((a.dims[-1] for a in arrays if a.dtype == "s8" and len(a.dims) == 3), default=0)
    density = (blocks + 1) / (2 * blocks) if blocks else 0.5
    whole = 2.0 * products * math.prod(heads) * q_len * key[-2] * head_dim
    masked = whole * density
    return masked, masked * math.ceil(head_dim / self._mxu) * self._mxu / head_dim, whole
