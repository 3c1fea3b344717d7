"""The Hugging Face hub: where a checkpoint is, and one line for what the hub refuses."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.config import ConfigError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def resolve(path_or_id: str) -> Path:
  """The folder of a path of this machine, or of an id of the hub, fetched once into its cache.

  Raises:
    ConfigError: neither a folder nor an id that the hub, or its cache where there is no network, has.
  """
  path = Path(path_or_id).expanduser()
  if path.is_dir():
    return path
  if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_id) or path_or_id.startswith("."):
    raise ConfigError(f"{path_or_id}: no such folder")
  from huggingface_hub import snapshot_download

  words = f"{path_or_id}: no such folder, and the hub does not give it"
  return Path(ask(words, lambda: snapshot_download(path_or_id, allow_patterns=list(FILES))))


def ask(words: str, request: Callable[[], Any]) -> Any:
  """What a request to the hub gives.

  Raises:
    ConfigError: the hub refuses or cannot be reached: "<words>: <its reason>".
  """
  import httpx2
  from huggingface_hub import errors

  refused = (errors.HFValidationError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
  try:
    return request()
  except (*refused, httpx2.HTTPError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ConfigError(f"{words}: {reason}") from error
