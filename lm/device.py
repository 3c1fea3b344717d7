"""What the machine has: which accelerator, whether jax came up on it, which compute type it is fast at. No jax needed.

`python lm/device.py` prints the extra to install (cpu, tpu, cuda12 or cuda13); the Makefile asks it before anything is there.
"""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# PCI ids of TPUs. Google's vendor id alone is not enough: the network cards and disks of its virtual machines carry it too.
GOOGLE = "0x1ae0"
TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
CUDA13_DRIVER = 580  # the first NVIDIA driver that runs CUDA 13; CUDA 12 needs 525
CUDA12_DRIVER = 525
HUGE_PAGES = "glibc.malloc.hugetlb"
# What a step gives back stays for the next one: an arena of a thread keeps no block that is as large as temporaries are.
KEPT = "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184"
RESTARTED = "LM_RESTARTED"  # set in a program that was started anew, whatever became of the request


def find_accelerator(root: Path = Path("/")) -> str:
  """ "tpu", "cuda13", "cuda12" or "cpu": the extra of setup.cfg for the hardware below a root folder.

  Raises:
    ValueError: an NVIDIA driver that is too old for both.
  """
  for device in sorted(root.glob("sys/bus/pci/devices/*")):
    if _read(device / "vendor") == GOOGLE and _read(device / "device") in TPUS:
      return "tpu"
  driver = re.search(r"Kernel Module.*?\s(\d+)\.", _read(root / "proc/driver/nvidia/version"))
  if driver is None:
    return "cpu"
  if int(driver[1]) < CUDA12_DRIVER:
    raise ValueError(f"NVIDIA driver {driver[1]}: jax needs {CUDA12_DRIVER} or newer; or install for the CPU with ACCEL=cpu")
  return "cuda13" if int(driver[1]) >= CUDA13_DRIVER else "cuda12"


def check_platform(platform: str, found: str, environment: Mapping[str, str] = os.environ) -> None:
  """Refuses to train on the CPU of a machine that has an accelerator, unless JAX_PLATFORMS asks for it.

  Args:
    platform: what jax came up on. found: what `find_accelerator` says.

  Raises:
    ValueError: with the command that installs what is missing.
  """
  if platform == "cpu" and found != "cpu" and environment.get("JAX_PLATFORMS", "") != "cpu":
    raise ValueError(
      f"this machine has an accelerator ({found}), but jax came up on its CPU; install it with: pip install -U 'jax[{found}]',"
      " or set JAX_PLATFORMS=cpu"
    )


def compute_dtype(dtype: str, device: Any) -> str:
  """The compute type of a run: "auto" is bfloat16 on TPUs and on GPUs that have it (compute capability 8.0), else float16.

  On a CPU it is float32.
  """
  if dtype != "auto":
    return dtype
  if device.platform == "cpu":
    return "float32"
  capability = float(getattr(device, "compute_capability", "8.0")) if device.platform == "gpu" else 8.0
  return "bfloat16" if capability >= 8.0 else "float16"


def available_memory(root: Path = Path("/")) -> int:
  """[bytes] that this process can still get: of the machine, or of the group that it is confined to; all, where none says."""
  found = [int(kib) << 10 for kib in re.findall(r"MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"))]
  limit, used = (_read(root / f"sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
  found += [int(limit) - int(used)] if limit.isdecimal() and used.isdecimal() else []
  return min(found, default=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def peak_memory(root: Path = Path("/")) -> int:
  """[bytes] that this process had at most, since it began or since `reset_peak_memory`.

  Of Linux's two counts the one that does not begin with what the process had that started this one.
  """
  if found := re.search(r"VmHWM:\s+(\d+) kB", _read(root / "proc/self/status")):
    return int(found[1]) << 10
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory() -> None:
  """Lets `peak_memory` begin anew, from what the process has now, where a Linux allows that."""
  with contextlib.suppress(OSError):
    Path("/proc/self/clear_refs").write_text("5")


def num_cores() -> int:
  """Cores that this process may use; the order of additions, and so the last bits of a loss, depends on them."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def restart_with_huge_pages(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> None:
  """Starts `python -m PROGRAM` anew, once, so that its memory stays, in pages of 2 MB where Linux gives those to who asks.

  A step's temporaries are new memory each time. With small pages handing that out took a quarter of it, and where rows have
  several lengths, giving it back and taking it again another (experiments/LOG.md). The C library reads the request at its start
  only; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 declines.
  A process that hosts the program, a notebook or a debugger, stays as it is.
  """
  spec, argv = getattr(sys.modules["__main__"], "__spec__", None), sys.orig_argv
  program = argv[argv.index("-m") + 1] if "-m" in argv else ""
  tunables = environment.get("GLIBC_TUNABLES", "")
  if spec is None or spec.name != program or RESTARTED in environment or HUGE_PAGES in tunables:
    return
  if "[madvise]" in _read(root / "sys/kernel/mm/transparent_hugepage/enabled"):
    asked = {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{HUGE_PAGES}=1", KEPT])), RESTARTED: "1"}
    os.execve(sys.executable, [sys.executable, *argv[1:]], {**environment, **asked})


def _read(path: Path) -> str:
  return path.read_text().strip() if path.is_file() else ""


if __name__ == "__main__":
  try:
    print(find_accelerator())
  except ValueError as error:
    sys.exit(f"error: {error}")
