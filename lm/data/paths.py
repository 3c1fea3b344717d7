"""Where the bytes of a corpus are: files, folders and globs, on this machine or remote (gs://...), compressed or not."""

import bz2
import contextlib
import functools
import glob
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from lm.config import ConfigError
from lm.files import is_remote

BLOCK = 1 << 20  # bytes that are read at once
REMEMBERED = 1 << 26  # bytes; the hash of a file of this machine that is larger is kept beside its size and time


def expand(pattern: str, setting: str) -> list[str]:
  """The files that a path means, sorted: itself, all files below a folder that are not hidden, or those of a glob.

  Raises:
    ConfigError: there is none; it names the setting.
  """
  if is_remote(pattern):
    found = _remote(pattern, setting)
  elif os.path.isfile(pattern):  # its name may hold a bracket or a star
    found = [pattern]
  elif os.path.isdir(pattern):
    inside = (os.path.relpath(os.path.join(root, name), pattern) for root, _, names in os.walk(pattern) for name in names)
    found = [os.path.join(pattern, name) for name in inside if not any(part.startswith(".") for part in Path(name).parts)]
  else:
    found = list(filter(os.path.isfile, glob.glob(pattern, recursive=True)))
  if not found:
    raise ConfigError(
      f"{setting}={pattern!r}: no such file; accepted are a file, a folder with files, or a glob like 'a/*.txt'"
    )
  return sorted(found)


def cache_folder() -> Path:
  """The folder of this machine and user for what can be made again."""
  return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lm"


def file_system(url: str, setting: str) -> tuple[Any, str]:
  """fsspec's file system of a URL, and the path in it.

  Raises:
    ConfigError: it is unknown or not installed; it names the setting.
  """
  import fsspec

  try:
    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:  # "Please install gcsfs", an unknown protocol
    raise ConfigError(f"{setting}={url!r}: {str(error).splitlines()[0]}") from error


def kind(path: str) -> str:
  """The suffix that says what a file holds, without that of its compression: "a.jsonl.gz" -> ".jsonl"."""
  name = Path(path.lower())
  return (name.with_suffix("") if name.suffix in CODECS else name).suffix


@contextlib.contextmanager
def opened(path: str) -> Generator[BinaryIO, None, None]:
  """The bytes of a file, decompressed if its name ends in one of CODECS.

  Raises:
    OSError: it is not there, or what is compressed is damaged.
  """
  with contextlib.ExitStack() as stack:
    file = stack.enter_context(_raw(path))
    decompress = CODECS.get(Path(path.lower()).suffix)
    try:
      yield stack.enter_context(decompress(file)) if decompress else file
    except (zlib.error, lzma.LZMAError) as error:  # of which neither is an OSError, as those of other damage are
      raise OSError(f"{error}") from error


@contextlib.contextmanager
def opened_text(path: str, encoding: str, newline: str | None = None) -> Generator[io.TextIOWrapper, None, None]:
  """The text of a file; encoding and newline as `open` takes them."""
  with opened(path) as file, io.TextIOWrapper(file, encoding=encoding, newline=newline) as text:
    yield text


def stamp(path: str) -> str:
  """What is another one once a file has changed: its time and size, or what its store says about it; "" where none is."""
  if is_remote(path):
    import fsspec

    system, name = fsspec.core.url_to_fs(path)
    return repr(system.checksum(name))
  if not os.path.exists(path):
    return ""
  stat = os.stat(path)
  return f"{stat.st_mtime_ns} {stat.st_size}"


def content_hash(path: str) -> str:
  """sha256 of a file's bytes as they are stored; of a remote file, of what its store says about it (checksum, time)."""
  if is_remote(path):
    return hashlib.sha256(stamp(path).encode()).hexdigest()
  stat = os.stat(path)
  return _local_hash(os.path.abspath(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _local_hash(path: str, size: int, time: int) -> str:
  """Of a large file it is kept in the cache folder of the user under (path, size, time), so that the next run is quick."""
  key = hashlib.sha256(f"{path}\0{size}\0{time}".encode()).hexdigest()[:24]
  note = cache_folder() / "sha256" / key
  if size >= REMEMBERED:
    with contextlib.suppress(OSError):  # not there yet
      return note.read_text()
  with _raw(path) as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if size >= REMEMBERED:
    with contextlib.suppress(OSError):  # nowhere to write: the next run reads the file again
      note.parent.mkdir(parents=True, exist_ok=True)
      temporary = note.with_name(f"{key}.{os.getpid()}")
      temporary.write_text(digest)
      temporary.replace(note)
  return digest


class Reader:
  """Bytes of one file at any place. A compressed file is read forwards, and from its start again to go back."""

  def __init__(self, path: str):
    self._path, self._seeks = path, Path(path.lower()).suffix not in CODECS
    self._stack, self._at, self._file = contextlib.ExitStack(), 0, None

  def read(self, start: int, stop: int) -> bytes:
    """Bytes start to stop."""
    if self._file is None or (start < self._at and not self._seeks):
      self.close()
      self._file, self._at = self._stack.enter_context(opened(self._path)), 0
    if self._seeks:
      self._file.seek(start)
    else:
      while self._at < start:
        self._at += len(self._file.read(min(BLOCK, start - self._at)))
    self._at = stop
    return self._file.read(stop - start)

  def close(self) -> None:
    """Closes the file; the next read opens it."""
    self._stack.close()
    self._file = None


def _raw(path: str) -> Any:
  if is_remote(path):
    import fsspec

    return fsspec.open(path, "rb")
  return open(path, "rb")


def _remote(pattern: str, setting: str) -> list[str]:
  system, path = file_system(pattern, setting)
  if system.isdir(path):
    found = [name for name in system.find(path) if not any(p.startswith(".") for p in name[len(path) :].split("/"))]
  else:
    found = system.glob(path) if "*" in path else [path] if system.isfile(path) else []
  return [system.unstrip_protocol(name) for name in found]


def _zstd(file: Any) -> Any:
  """zstd through pyarrow, which has it on every Python."""
  import pyarrow

  raw: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
  return io.BufferedReader(raw)


CODECS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
