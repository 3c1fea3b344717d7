"""Interchange with Hugging Face: directories of config.json, safetensors and tokenizer files, to ours and back.

`load_pretrained(path)` gives any checkpoint as a value, `save_pretrained(pretrained, directory)` writes one for transformers.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from lm.pretrained import load_pretrained as load_pretrained
  from lm.pretrained import save_pretrained as save_pretrained


def __getattr__(name: str) -> Any:
  if name in ("load_pretrained", "save_pretrained"):
    from lm import pretrained

    return getattr(pretrained, name)
  raise AttributeError(f"module 'lm.interop' has no attribute {name!r}")
