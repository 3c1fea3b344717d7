"""Published figures of accelerators, one table for utilisation, predictions and memory. No jax needed."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as jax counts them. Beside the peak and the memory's speed, a prediction reads them; 0: there is none."""

  peak_flops: float  # [FLOP/s] dense, bf16
  flops_per_cycle: int = 0  # of the matrix units that one compiled program drives; with the peak, the compiler's clock
  hbm_bytes: float = 0.0  # on the data sheet
  usable_bytes: int = 0  # what libtpu's compiler lets a program have
  hbm_bytes_per_sec: float = 0.0
  link_bytes_per_sec: float = 0.0  # of one link between chips, one way
  dcn_bytes_per_sec: float = 0.0  # between slices, over the data centre's network
  mxu: int = 128  # [rows] of a matrix unit

  @property
  def clock(self) -> float:
    """[Hz] by which estimated cycles become seconds."""
    return self.peak_flops / self.flops_per_cycle

  @property
  def axis_bytes_per_sec(self) -> float:
    """Of a ring along one axis of the torus, both ways together."""
    return 2 * self.link_bytes_per_sec


GIB = 1 << 30
V4 = Chip(275e12, 2 * 128 * 128 * 8, 32e9, round(30.75 * GIB), 1.2e12, 4.5e10, 6.25e9)
V5E = Chip(197e12, 2 * 128 * 128 * 4, 16e9, round(15.75 * GIB), 8.2e11, 4.5e10, 3.125e9)
V5P = Chip(459e12, 2 * 128 * 128 * 8, 95e9, round(95.74 * GIB), 2.76e12, 9e10, 6.25e9)
V6E = Chip(918e12, 2 * 256 * 256 * 4, 32e9, round(31.25 * GIB), 1.64e12, 9e10, 1.25e10, mxu=256)

# By the start of the kind that jax names a device by; the first that fits counts.
CHIPS = {
  "TPU v4": V4,
  "TPU v5 lite": V5E,
  "TPU v5e": V5E,
  "TPU v5": V5P,
  "TPU v6": V6E,
  "NVIDIA A100": Chip(312e12),
  "NVIDIA H100 PCIe": Chip(756e12, hbm_bytes_per_sec=2e12),
  "NVIDIA H100 NVL": Chip(835e12, hbm_bytes_per_sec=3.9e12),
  "NVIDIA H100": Chip(989e12, hbm_bytes_per_sec=3.35e12),
  "NVIDIA H200": Chip(989e12, hbm_bytes_per_sec=4.8e12),
}
# What `--topology` may say, one example for each kind of TPU.
TOPOLOGIES = ("v4:2x2x2", "v5e:4x4", "v5p:2x2x4", "v6e:4x4")


def find(device_kind: str) -> Chip | None:
  """The chip of a device kind ("TPU v5 lite"); None where it is not in the table."""
  return next((chip for kind, chip in CHIPS.items() if device_kind.startswith(kind)), None)
