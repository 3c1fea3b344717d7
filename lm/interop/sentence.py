"""How a directory of sentence-transformers makes one vector of a text: `modules.json` and what it names, both ways."""

from pathlib import Path
from typing import Any

from lm.config import ConfigError
from lm.files import read_json, write_json

MODULES = "modules.json"
SIZES = "sentence_bert_config.json"
POOLING = {"pooling_mode_cls_token": "first", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
_TYPE = "sentence_transformers.models."


def read(folder: Path) -> dict[str, Any]:
  """{"pooling": "mean", "normalize": True} of a directory, {} where it is none of sentence-transformers.

  Raises:
    ConfigError: another way of pooling, or a module that is none of Transformer, Pooling and Normalize.
  """
  if not (folder / MODULES).is_file():
    return {}
  modules: Any = read_json(folder / MODULES)
  kinds = [module["type"].rpartition(".")[2] for module in modules]
  if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
    raise ConfigError(f"{folder / MODULES}: has {', '.join(kinds)}; accepted are Transformer, Pooling and perhaps Normalize")
  path = folder / modules[1]["path"] / "config.json"
  ways = [name for name, on in read_json(path).items() if name.startswith("pooling_mode_") and on]
  if len(ways) != 1 or ways[0] not in POOLING:
    raise ConfigError(f"{path}: has {', '.join(ways) or 'no pooling'}; accepted is one of {', '.join(POOLING)}")
  return {"pooling": POOLING[ways[0]], "normalize": "Normalize" in kinds}


def read_max_len(folder: Path) -> int:
  """Tokens of the longest text that its directory reads, specials included; 0 where it says nothing."""
  return (read_json(folder / SIZES).get("max_seq_length") or 0) if (folder / SIZES).is_file() else 0


def write(folder: Path, pooling: str, normalize: bool, width: int, max_len: int) -> None:
  """The inverse, into the directory of a model of that many dims."""
  kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
  paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
  listed = [{"idx": i, "name": str(i), "path": paths[i], "type": _TYPE + kind} for i, kind in enumerate(kinds)]
  write_json(folder / MODULES, listed)
  (folder / paths[1]).mkdir(exist_ok=True)
  modes = {name: ours == pooling for name, ours in POOLING.items()}
  write_json(folder / paths[1] / "config.json", {"word_embedding_dimension": width} | modes)
  write_json(folder / SIZES, {"max_seq_length": max_len, "do_lower_case": False})
