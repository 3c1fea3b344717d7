"""How the argument of a recipe picks one of its variants: `configs/llama2_7b.py:v5e_16x16`.

A recipe keeps a table VARIANTS from argument to settings, of which the first is what no argument means. Variants are named
after the TPU topology that they are sized for (v5e_4x4 is v5e:4x4), or after what they train. None of them needs that
topology: mesh, tokens per device, remat and loss_chunk may be set on the command line, and change no loss.

The commands in the headers run on every host of a slice. Text is tokenised when a run starts, once for all
hosts and runs where config.cache_dir is a place that they share. Files of the hub land in $HF_HOME of every host, about 3 GB
for each billion tokens of FineWeb: more than 10 B do not fit a TPU VM's own disk.
"""

from collections.abc import Mapping
from typing import Any

Variants = Mapping[str, Mapping[str, Any]]


def variant(arg: str, variants: Variants) -> dict[str, Any]:
  """The settings of a variant.

  Raises:
    ValueError: there is none of this name.
  """
  first = next(iter(variants))
  if arg and arg not in variants:
    raise ValueError(f"accepted arguments are {', '.join(variants)}; without one it is {first}")
  return dict(variants[arg or first])
