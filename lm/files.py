"""Files that are written whole or not at all, on this machine or remote (gs://bucket/run): the one way of a run to its workdir.

A remote path is etils' (epath), which Orbax uses too and which answers as pathlib's does. Corpora and their stores, which may
be at any URL, have lm.data.paths.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from lm.plug import ConfigError


def path(text: str | Path, setting: str) -> Path:
  """The path that a text means.

  Raises:
    ConfigError: a URL other than gs://, since Orbax writes to no other store, or gcsfs is missing; it names the setting.
  """
  if not is_remote(text):
    return Path(text)
  if not str(text).startswith("gs://"):
    raise ConfigError(f"{setting}={text}: accepted are a folder of this machine and gs://BUCKET/FOLDER, as checkpoints allow")
  import fsspec
  from etils import epath
  from fsspec import config

  try:
    fsspec.get_filesystem_class("gs")
  except ImportError as error:
    raise ConfigError(f"{setting}={text}: needs gcsfs: pip install 'lm[gcs]'") from error
  for name in ("gs", "gcs"):  # what a folder holds is asked each time: other hosts write there, and Orbax past fsspec
    config.conf.setdefault(name, {})["use_listings_cache"] = False
  return cast(Path, epath.Path(text))


def local_path(text: str) -> Path:
  """The path that a flag means, of this machine; `Path` would make gs://a into the folder gs:/a.

  Raises:
    ConfigError: a URL.
  """
  if is_remote(text):
    raise ConfigError(f"{text}: accepted is a path of this machine")
  return Path(text)


def is_remote(path: str | Path) -> bool:
  """Whether it is a URL, not on a file system of this machine: gs://bucket/a.txt."""
  return "://" in str(path)


def absolute(path: Path) -> str:
  """Where it is, from anywhere."""
  return str(path) if is_remote(path) else str(path.resolve())


def write(path: Path, data: bytes) -> None:
  """Writes beside the place and renames, so that a kill leaves the old file or the new one; a remote file appears whole."""
  if is_remote(path):
    path.write_bytes(data)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_bytes(data)
  temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
  """Writes an object whole, as `write` does."""
  write(path, (json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def fetched(where: str) -> Generator[str]:
  """A file or a folder of files on this machine: where it is, or a copy of a remote one for as long as it is needed."""
  if not is_remote(where):
    yield where
    return
  source = path(where, "fetch")
  with tempfile.TemporaryDirectory() as folder:
    target = Path(folder, source.name)
    if source.is_dir():
      target.mkdir()
    for file in source.iterdir() if source.is_dir() else (source,):
      (target / file.name if source.is_dir() else target).write_bytes(file.read_bytes())
    yield str(target)


def find(folder: Path, name: str) -> list[Path]:
  """All files of a name in or below a folder, sorted; of a remote one by a single listing."""
  if not is_remote(folder):
    return sorted(folder.rglob(name))
  import fsspec

  system, inside = fsspec.core.url_to_fs(str(folder))
  return [path(system.unstrip_protocol(found), "find") for found in system.find(inside) if found.endswith(f"/{name}")]


@contextlib.contextmanager
def alone(lock: Path, workdir: Path) -> Generator[None]:
  """Holds a workdir for this process to the end of the block or of the process, by a file that is there so long.

  On a file system that knows no locks, as some of a network, nothing is held.

  Raises:
    ConfigError: another process holds it; it says which.
  """
  lock.parent.mkdir(parents=True, exist_ok=True)
  with lock.open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise ConfigError(
        f"{workdir}: process {file.read()} trains there; stop it, or give this one a workdir of its own"
      ) from error
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        raise
    if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):  # opened before it was removed below
      raise ConfigError(f"{workdir}: another process that trained there ends at this moment; start this one again")
    file.truncate(0)
    file.write(f"{os.getpid()}")
    file.flush()
    try:
      yield
    finally:
      lock.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, setting: str) -> Generator[Path]:
  """Makes a folder to write into, which is removed in the end unless it was renamed to its place.

  Raises:
    ConfigError: it cannot be made; `setting` is what the line begins with.
  """
  try:
    path.mkdir(parents=True)
  except OSError as error:
    raise ConfigError(f"{setting} cannot be written ({error.strerror})") from error
  try:
    yield path
  finally:
    shutil.rmtree(path, ignore_errors=True)


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file that somebody else wrote.

  Raises:
    ConfigError: not JSON, or no object.
  """
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f"{path}: not JSON ({error})") from error
  if not isinstance(found, dict):
    raise ConfigError(f"{path}: expected a JSON object, got {str(found)[:80]}")
  return found


def read_json(path: Path) -> dict[str, Any]:
  """The object in a file, {} without a file."""
  return json.loads(path.read_text()) if path.is_file() else {}
