"""Partial fine-tuning: parameters and layers by patterns, all at once or unfrozen from the top (Howard & Ruder 2018)."""

import dataclasses
import functools
import re

import numpy as np

from lm import tree
from lm.peft.peft import Peft
from lm.shapes import depth
from lm.state import NEVER

HEADS = "head_.*"


@dataclasses.dataclass(frozen=True)
class Partial(Peft):
  """Trains what the patterns of `train` choose; of the rest, heads train and the backbone is frozen.

  A pattern is a regular expression on whole names, `PATTERN`, `PATTERN@START:STOP` for some of the layers as Python slices
  them, or `PATTERN@none` to freeze; of several that match a name the first counts: ("backbone/.*/bias@none",
  "backbone/blocks/.*@-4:") trains all but the biases of the last four layers.

  With `unfreeze_every` N, heads and the final norm train from the start, the top layer from step N on, the one below from 2 N,
  what the blocks read, such as the embedding, from (L + 1) N. One compiled step serves all: layers that wait cost what they
  cost later.

  Raises:
    ValueError: a pattern that cannot be read; by `attach`, one that chooses nothing, or layers that are not there.
  """

  train: tuple[str, ...] = ("backbone/blocks/.*@-1:",)  # PATTERN, PATTERN@START:STOP or PATTERN@none; the first match counts
  unfreeze_every: int = 0  # [steps] until the next layer trains, the top one first, after the heads; 0: all train at once

  def __post_init__(self):
    if self.unfreeze_every < 0:
      raise ValueError(f"peft.unfreeze_every={self.unfreeze_every}: must not be negative")
    if not self.train:
      raise ValueError("peft.train=(): must have a pattern; to train heads only, use peft='head'")
    for text in self.train:
      _parse(text)

  def attach(self, params, rng):
    del rng
    boxes = tree.flatten(params)
    rules = [(_parse(text)[0], text) for text in self.train]
    chosen = tree.first_match([*rules, (".*", "")], boxes, "peft.train")
    for text in self.train:
      names = [name for name in boxes if chosen[name] == text]
      if not names:
        raise ValueError(f"peft.train={text!r}: patterns before it match all of its parameters")
      layers = _parse(text)[1]
      if layers in (None, slice(None)):
        continue
      for name in names:
        if boxes[name].names[0] != "layers":
          raise ValueError(f"peft.train={text!r}: parameter {name!r} is not one of the layers; accepted is @none or no '@'")
        num_layers = boxes[name].value.shape[0]
        outside = [i for i in (layers.start, layers.stop) if i is not None and not -num_layers <= i <= num_layers]
        if outside or not range(*layers.indices(num_layers)):
          raise ValueError(f"peft.train={text!r}: has no layer or leaves the model's, which are 0:{num_layers}")
    return params

  def trainable(self, name):
    return self._layers(name) is not None

  def starts(self, name, num_layers):
    steps = np.minimum(depth(name, num_layers) * self.unfreeze_every, NEVER - 1)
    layers = self._layers(name)
    if layers in (None, slice(None)):
      return steps
    found = np.full(num_layers, NEVER)
    found[layers] = steps[layers]
    return found

  def _layers(self, name: str) -> slice | None:
    """Those of a parameter's layers that train; slice(None) if all of it does, None if nothing."""
    rules = [*map(_parse, self.train), (HEADS, slice(None))]
    return next((layers for pattern, layers in rules if re.fullmatch(pattern, name)), None)


@functools.cache
def _parse(text: str) -> tuple[str, slice | None]:
  """ "backbone/blocks/.*@6:" -> ("backbone/blocks/.*", slice(6, None)); None for @none."""
  pattern, at, layers = text.partition("@")
  bounds = re.fullmatch(r"(-?\d+)?:(-?\d+)?", layers)
  if not pattern or at and layers != "none" and bounds is None:
    raise ValueError(f"peft.train={text!r}: expected 'PATTERN', 'PATTERN@START:STOP' or 'PATTERN@none'")
  tree.check_pattern(pattern, f"peft.train={text!r}")
  if layers == "none":
    return pattern, None
  return pattern, slice(*(None if i is None else int(i) for i in bounds.groups())) if bounds else slice(None)
