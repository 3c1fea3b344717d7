"""What the machine has, on made-up machines: PCI ids, driver versions, compute capabilities."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

from lm import device


def machine(root, vendor="", pci="", driver=""):
  """A root folder with one PCI device and an NVIDIA driver's version file."""
  folder = root / "sys/bus/pci/devices/0000:00:04.0"
  folder.mkdir(parents=True)
  (folder / "vendor").write_text(f"{vendor}\n")
  (folder / "device").write_text(f"{pci}\n")
  if driver:
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu\n")
  return root


@pytest.mark.parametrize(
  ("settings", "found"),
  [
    ({"vendor": "0x1ae0", "pci": "0x0063"}, "tpu"),
    ({"vendor": "0x1ae0", "pci": "0x0042"}, "cpu"),  # the network card of a virtual machine
    ({"vendor": "0x10de", "pci": "0x0063"}, "cpu"),
    ({"driver": "580.65.06"}, "cuda13"),
    ({"driver": "550.54.15"}, "cuda12"),
    ({}, "cpu"),
  ],
)
def test_accelerators_are_found_by_their_ids(settings, found, tmp_path):
  assert device.find_accelerator(machine(tmp_path, **settings)) == found


def test_an_open_kernel_module_is_read_too(tmp_path):
  root = machine(tmp_path, driver="1.0")
  text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
  (root / "proc/driver/nvidia/version").write_text(text)
  assert device.find_accelerator(root) == "cuda13"


def test_an_old_driver_is_said(tmp_path):
  with pytest.raises(ValueError, match="driver 470: jax needs 525"):
    device.find_accelerator(machine(tmp_path, driver="470.10"))


def test_the_cpu_of_a_machine_with_an_accelerator_is_refused_unless_asked_for():
  with pytest.raises(ValueError, match=r"pip install -U 'jax\[tpu\]'"):
    device.check_platform("cpu", "tpu", {})
  device.check_platform("cpu", "tpu", {"JAX_PLATFORMS": "cpu"})
  device.check_platform("tpu", "tpu", {})
  device.check_platform("cpu", "cpu", {})


@pytest.mark.parametrize(
  ("platform", "capability", "dtype"),
  [
    ("cpu", None, "float32"),
    ("tpu", None, "bfloat16"),
    ("gpu", "7.5", "float16"),  # a T4
    ("gpu", "8.0", "bfloat16"),
    ("gpu", "12.0", "bfloat16"),
  ],
)
def test_auto_dtype_follows_the_capability(platform, capability, dtype):
  fake = types.SimpleNamespace(platform=platform) if capability is None else None
  fake = fake or types.SimpleNamespace(platform=platform, compute_capability=capability)
  assert device.compute_dtype("auto", fake) == dtype
  assert device.compute_dtype("float32", fake) == "float32"


def test_the_file_runs_without_the_package():
  done = subprocess.run([sys.executable, "-I", device.__file__], capture_output=True, text=True, check=True, cwd=Path("/"))
  assert done.stdout.strip() in ("cpu", "tpu", "cuda12", "cuda13")


ARGV = ["python", "-X", "dev", "-m", "lm.main", "--config=a b"]


def restarts(monkeypatch, root, environment, argv=ARGV):
  """What a program would start anew with."""
  calls = []
  monkeypatch.setattr(device.os, "execve", lambda *args: calls.append(args))
  monkeypatch.setattr(sys, "orig_argv", argv)
  monkeypatch.setattr(sys.modules["__main__"], "__spec__", types.SimpleNamespace(name="lm.main"))
  device.restart_with_huge_pages(environment, root)
  return calls


def test_a_program_starts_anew_once_where_huge_pages_are_given_to_those_that_ask(monkeypatch, tmp_path):
  switch = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
  switch.parent.mkdir(parents=True)
  switch.write_text("always [madvise] never\n")
  ((program, arguments, environment),) = restarts(monkeypatch, tmp_path, {"HOME": "/h", "GLIBC_TUNABLES": "glibc.rtld.nns=4"})
  assert (program, arguments) == (sys.executable, [sys.executable, *ARGV[1:]])
  assert environment.pop("GLIBC_TUNABLES") == f"glibc.rtld.nns=4:glibc.malloc.hugetlb=1:{device.KEPT}"
  assert environment.pop("HOME") == "/h" and len(environment) == 1
  assert not restarts(monkeypatch, tmp_path, environment)  # also where the C library took the request away
  for host in (["python", "-m", "ipykernel_launcher", "-f", "x"], ["python", "-m", "pdb", "-m", "lm.main"], ["python", "a.py"]):
    assert not restarts(monkeypatch, tmp_path, {}, host)
  assert not restarts(monkeypatch, tmp_path, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
  for words in ("[always] madvise never", "always madvise [never]"):
    switch.write_text(words)
    assert not restarts(monkeypatch, tmp_path, {})


def test_a_machine_without_huge_pages_is_left_alone(monkeypatch, tmp_path):
  assert not restarts(monkeypatch, tmp_path, {})


def test_peak_memory_is_of_this_process_and_begins_anew():
  array = bytearray(64 << 20)
  peak = device.peak_memory()
  del array
  device.reset_peak_memory()
  assert device.peak_memory() < peak - (32 << 20)
  program = "from lm import device; print(device.peak_memory())"
  with_much = (
    f"import subprocess, sys; much = bytearray(400 << 20); subprocess.run([sys.executable, '-c', {program!r}], check=True)"
  )
  found = subprocess.run([sys.executable, "-c", with_much], capture_output=True, text=True, check=True).stdout
  assert 0 < int(found) < 200 << 20
