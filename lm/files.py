"""JSON files and folders that are written whole or not at all."""

import contextlib
import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lm.plug import ConfigError


def write_json(path: Path, value: Any) -> None:
  """Writes beside the place and renames, so that a kill leaves the old file or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  temporary.replace(path)


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
