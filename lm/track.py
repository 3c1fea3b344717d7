"""What a run says and keeps while it trains: one console line, metrics.jsonl, TensorBoard, the exact losses, wall times."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from lm import files

GROWING = ("losses.f32", "metrics.jsonl")  # files of a run that are appended to


class Records:
  """The folder of this machine in which a process keeps what its run leaves, and the workdir that gets it.

  They are the same for process 0 and a workdir of its file system. A remote one has no append: its files are kept here and put
  there whole. What other processes keep is seen by nobody: they do as process 0 does, so that nothing else asks who they are.

  cache: the folder of this machine in which such folders are.
  """

  def __init__(self, workdir: Path, cache: Path, index: int = 0):
    self.workdir, self._sends = workdir, index == 0 and files.is_remote(workdir)
    self._private = index > 0 or files.is_remote(workdir)
    key = hashlib.sha256(files.absolute(workdir).encode()).hexdigest()[:24]
    self.folder = cache / "runs" / key / str(index) if self._private else workdir
    self.place = self.folder if index else workdir  # where a file goes that is written once, and whole
    self._held = contextlib.ExitStack()

  def __enter__(self) -> "Records":
    lock = self.folder.with_suffix(".lock") if self._private else self.folder / ".lock"
    self._held.enter_context(files.alone(lock, self.workdir))
    if self._private:  # what a kill left there; the truth is in the workdir
      shutil.rmtree(self.folder, ignore_errors=True)
    self.folder.mkdir(parents=True, exist_ok=True)
    return self

  def __exit__(self, *exception: object) -> None:
    with self._held:
      self.send()
      if self._private:
        shutil.rmtree(self.folder)

  def bring(self, other: Path) -> None:
    """Copies the losses and metrics of a workdir whose checkpoint this run goes on from."""
    for name in GROWING if other != self.folder else ():
      (self.folder / name).write_bytes((other / name).read_bytes())

  def send(self) -> None:
    """Puts all files into a remote workdir; the others are there already."""
    for path in self.folder.rglob("*") if self._sends else ():
      if path.is_file():
        files.write(self.workdir.joinpath(*path.relative_to(self.folder).parts), path.read_bytes())


class Tracker:
  """Writes scalars to metrics.jsonl (the source of truth) and TensorBoard, and keeps one console line up to date.

  resume_step: lines of later steps, written before an interruption, are taken out, since those steps run again.
  """

  def __init__(self, workdir: Path, *, total_steps: int, resume_step: int = 0, stream: IO[str] | None = None):
    from tensorboardX import SummaryWriter

    self._path = workdir / "metrics.jsonl"
    self._total = total_steps
    self._first: tuple[int, float] | None = None  # step and time of the first progress line: what came before is no pace
    self._stream = stream or sys.stderr
    self._line = ""
    _keep_until(self._path, resume_step)
    self._file = self._path.open("a")
    self._events = SummaryWriter(str(workdir), purge_step=resume_step + 1 if resume_step else None)

  def __enter__(self) -> "Tracker":
    return self

  def __exit__(self, *exception: object) -> None:
    self.say("")
    self._file.close()
    self._events.close()

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """One object per call; a value that is not finite is null, as JSON has no name for it."""
    values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
    self._file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
    self._file.flush()
    for name, value in scalars.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()

  def progress(
    self, step: int, loss: float, learning_rate: float, rate: float, *, mfu: float | None = None, data_wait: float = 0.0
  ) -> None:
    """The state of the run in one line. rate: tokens per second. data_wait: share of the time spent waiting for data."""
    now = time.perf_counter()
    first, began = self._first = self._first or (step, now)
    parts = [f"step {step}/{self._total}", f"loss {loss:.4f}", f"lr {learning_rate:.2e}", f"{rate:,.0f} tokens/s"]
    parts += [] if mfu is None else [f"MFU {mfu:.1%}"]
    parts.append(f"data wait {data_wait:.1%}")
    parts += [f"ETA {_duration((now - began) / (step - first) * (self._total - step))}"] if step > first else []
    line = "  ".join(parts)
    if self._stream.isatty():
      self._line = line[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be taken back
      self._stream.write("\r\x1b[2K" + self._line)
    else:
      self._stream.write(line + "\n")
    self._stream.flush()

  def say(self, text: str) -> None:
    """Prints text above the progress line; an empty text only ends that line."""
    if self._line:
      self._stream.write("\n" if not text else "\r\x1b[2K")
    self._stream.write(f"{text}\n" if text else "")
    if self._line and text:
      self._stream.write(self._line)
    self._line = self._line if text else ""
    self._stream.flush()


class Losses:
  """The exact loss of every step, little-endian fp32, in `losses.f32`."""

  def __init__(self, path: Path):
    self._path = path
    path.touch()
    self._file = path.open("r+b")
    self._file.seek(0, os.SEEK_END)

  def __enter__(self) -> "Losses":
    return self

  def __exit__(self, *exception: object) -> None:
    self._file.close()

  def write(self, step: int, loss: np.float32) -> None:
    """The loss of a step, counted from 0; a step written twice stands once."""
    self._file.seek(4 * step)
    self._file.write(np.asarray(loss, "<f4").tobytes())

  def flush(self) -> None:
    """Returns when everything is on disk."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def truncate(self, step: int) -> None:
    """Keeps the losses of the first `step` steps.

    Raises:
      ValueError: there are fewer, so the file is not the one that the checkpoint was saved with.
    """
    self._file.flush()
    found = self._file.seek(0, os.SEEK_END) // 4
    if found < step:
      raise ValueError(f"{self._path}: holds the losses of {found} steps, but the checkpoint is of step {step}")
    self._file.truncate(4 * step)
    self._file.seek(0, os.SEEK_END)

  def read(self) -> np.ndarray:
    """All losses so far."""
    self._file.flush()
    return np.fromfile(self._path, "<f4")

  def sha256(self) -> str:
    """Hash of all bytes."""
    self._file.flush()
    return hashlib.sha256(self._path.read_bytes()).hexdigest()


class Clock:
  """Adds up wall time by name; while one name is timed, the time of others inside it is theirs only."""

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str) -> Generator[None]:
    before, began = sum(self.seconds.values()), time.perf_counter()
    try:
      yield
    finally:
      inside = sum(self.seconds.values()) - before
      self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began - inside


def _keep_until(path: Path, step: int) -> None:
  """Takes lines of later steps out of a metrics file, and a last line that was cut off while it was written.

  Step 0 keeps nothing, since its evaluation runs again.
  """
  if not path.is_file():
    return
  kept: list[str] = []
  for line in path.read_text().splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      entry: dict[str, Any] = json.loads(line)
      if entry["step"] <= step and (step or entry["step"]):
        kept.append(line + "\n")
  whole = path.with_name(path.name + ".tmp")
  whole.write_text("".join(kept))
  whole.replace(path)


def _duration(seconds: float) -> str:
  """72 -> '1:12', 3672 -> '1:01:12'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
