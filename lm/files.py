"""JSON files that are written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from lm.plug import ConfigError


def write_json(path: Path, value: Any) -> None:
  """Writes beside the place and renames, so that a kill leaves the old file or the new one."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  temporary.replace(path)


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
