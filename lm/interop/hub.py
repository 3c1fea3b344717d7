"""Where a checkpoint is: a folder of this machine, or an id of the Hugging Face hub, fetched once into its cache."""

import re
from pathlib import Path

from lm.config import ConfigError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def resolve(path_or_id: str) -> Path:
  """The folder.

  Raises:
    ConfigError: neither a folder nor an id that the hub, or its cache where there is no network, has.
  """
  path = Path(path_or_id).expanduser()
  if path.is_dir():
    return path
  if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_id) or path_or_id.startswith("."):
    raise ConfigError(f"{path_or_id}: no such folder")
  import httpx2
  from huggingface_hub import errors, snapshot_download

  refused = (errors.HFValidationError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
  try:
    return Path(snapshot_download(path_or_id, allow_patterns=list(FILES)))
  except (*refused, httpx2.HTTPError) as error:
    reason = str(error).strip().splitlines()[0]
    raise ConfigError(f"{path_or_id}: no such folder, and the hub does not give it: {reason}") from error
