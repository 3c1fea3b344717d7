"""lm: language models in JAX, from raw text to something used. See README.md for the tour.

`lm.load(workdir)` gives a trained model as a `Predictor`, `lm.config` is the module of settings. Importing lm imports
neither jax nor numpy: both names are looked up when they are asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from lm import config as config
  from lm.predictor import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
  if name == "load":
    from lm.predictor import load

    return load
  if name == "config":
    return importlib.import_module("lm.config")
  raise AttributeError(f"module 'lm' has no attribute {name!r}")
