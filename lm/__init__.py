"""lm: language models in JAX, from raw text to something used. See README.md for the tour."""

__version__ = "0.1.0"
