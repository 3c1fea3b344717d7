"""A folder of columns that is whole or not there, where every process of a run sees it: on this machine or remote (gs://...).

On a file system it is made beside its place and renamed. An object store has no rename: there `index.json` is written last and
makes it whole, and its files are copied to this machine, checked and renamed, before they are mapped.
"""

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lm import files
from lm.data import columns, paths

SETTING = "config.cache_dir"


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a folder is.

  shared: a folder or a URL. local: the folder of this machine that is mapped, the same if shared is no URL. scratch: the
  folder, on the file system of `local`, in which folders are made.
  """

  shared: str
  local: Path
  scratch: Path

  @property
  def parts(self) -> "Place":
    """The folder of this one's parts."""
    return Place(f"{self.shared}.parts", self.local.with_name(f"{self.local.name}.parts"), self.scratch)

  def part(self, index: int, count: int) -> "Place":
    """Part `index` of `count`."""
    name = f"{index:05}-of-{count:05}"
    return Place(f"{self.parts.shared}/{name}", self.parts.local / name, self.scratch)

  def exists(self) -> bool:
    """Whether it is there; one on this machine may be damaged, one that is remote is whole."""
    if not self._remote:
      return self.local.exists()
    system, path = self._system()
    return system.exists(f"{path}/{columns.INDEX}")

  def missing_parts(self, count: int) -> list[int]:
    """The parts of `count` that are not there yet, asked for by one listing."""
    if self._remote:
      system, path = self.parts._system()
      found = {name.split("/")[-2] for name in system.find(path) if name.endswith(f"/{columns.INDEX}")}
    else:
      found = {path.parent.name for path in self.parts.local.glob(f"*/{columns.INDEX}")}
    return [i for i in range(count) if self.part(i, count).local.name not in found]

  @contextlib.contextmanager
  def making(self) -> Generator[Path]:
    """An empty folder of this machine to write into; it is put in place at the end, and removed when anything fails."""
    with self._new_folder() as made:
      yield made
      if self._remote:
        self._upload(made)
      self._settle(made)

  def fetch(self) -> str | None:
    """Copies the folder to this machine unless it is there. Returns what is wrong with it, or None."""
    wrong = columns.damage(self.local)
    if wrong is None or not self._remote:
      return wrong
    self._discard_local()
    system, path = self._system()
    with self._new_folder() as made:
      try:
        for name in system.find(path):
          system.get_file(name, str(made / name.split("/")[-1]))
      except FileNotFoundError as error:  # removed meanwhile
        return f"unreadable ({type(error).__name__})"
      wrong = columns.damage(made)
      if wrong is None:
        self._settle(made)
    return wrong

  def discard(self) -> None:
    """Removes it everywhere, so that no other process finds half of it."""
    if self._remote:
      system, path = self._system()
      for name in (f"{path}/{columns.INDEX}", path):
        with contextlib.suppress(FileNotFoundError):  # was never there, or another process was first
          system.rm(name, recursive=True)
    self._discard_local()

  @property
  def _remote(self) -> bool:
    return files.is_remote(self.shared)

  def _system(self) -> tuple[Any, str]:
    """fsspec's file system and the path in it; what it remembers of folders is forgotten, as other hosts write too."""
    system, path = paths.file_system(self.shared, SETTING)
    system.invalidate_cache()
    return system, path

  def _upload(self, made: Path) -> None:
    """The index last, and moved to its place: some file systems (file://) show a file before all of it is there."""
    system, path = self._system()
    aside = f"{path}/{uuid.uuid4().hex}"
    system.makedirs(aside)
    for name in sorted(file.name for file in made.iterdir() if file.name != columns.INDEX):
      system.put_file(str(made / name), f"{path}/{name}")
    system.put_file(str(made / columns.INDEX), f"{aside}/{columns.INDEX}")
    system.mv(f"{aside}/{columns.INDEX}", f"{path}/{columns.INDEX}")
    with contextlib.suppress(FileNotFoundError):  # an object store has no empty folders
      system.rm(aside, recursive=True)

  def _beside(self) -> Path:
    """A new name, on the same file system."""
    return self.scratch / f"{self.local.name}.{uuid.uuid4().hex}"

  def _new_folder(self) -> contextlib.AbstractContextManager[Path]:
    return files.new_folder(self._beside(), f"{SETTING}: {str(self.scratch)!r}")

  def _settle(self, made: Path) -> None:
    self.local.parent.mkdir(parents=True, exist_ok=True)
    try:
      os.replace(made, self.local)
    except OSError:  # another process was first; its files are the same
      if not (self.local / columns.INDEX).is_file():
        raise

  def _discard_local(self) -> None:
    aside = self._beside()
    try:
      os.replace(self.local, aside)
    except FileNotFoundError:  # there is none, or another process was first
      return
    shutil.rmtree(aside)


def locate(folder: str | Path, name: str) -> Place:
  """The place of a name in the folder `store` of a cache folder, which may be a URL."""
  remote = files.is_remote(folder)
  scratch = (paths.cache_folder() if remote else Path(folder).expanduser()) / "store"
  return Place(f"{str(folder).rstrip('/')}/store/{name}" if remote else str(scratch / name), scratch / name, scratch)
