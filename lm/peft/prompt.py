"""Prompt tuning (Lester et al. 2021): trained embeddings in front of every sequence of a frozen backbone.

Rows reserve positions for them (lm.data.reserve), so that a sequence with its prompt fits a row, and the lookup of tokens
fills those. They count like tokens: the first token behind the prompt stands at position `num_virtual_tokens`.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm import tree
from lm.peft.peft import Around, Peft, in_task_head
from lm.plug import ConfigError

INIT = ("vocab", "text", "random")


@dataclasses.dataclass(frozen=True)
class Prompt(Peft):
  """Trains the embeddings of a prompt [num_virtual_tokens, D], and the task's heads beside.

  A piece of a document that is split over rows has a prompt in front too. Nothing is predicted from a prompt's positions, and
  pooling passes over them.

  Raises:
    ValueError: by `merge`: the prompt belongs to the input.
  """

  num_virtual_tokens: int = 20  # [positions] of a row that the prompt takes in front of every sequence
  init: str = "vocab"  # where embeddings start: vocab (rows of the table, drawn), text (those of a text), random (as wide)
  init_text: str = ""  # with init=text: its pieces, over again or cut to num_virtual_tokens
  init_ids: tuple[int, ...] = ()  # with init=text: the ids of those pieces; unset takes them of init_text
  adapter: str = "default"  # name of the leaves

  identity_at_init: ClassVar[bool] = False
  merges: ClassVar[bool] = False

  def __post_init__(self):
    if self.num_virtual_tokens < 1:
      raise ConfigError(f"peft.num_virtual_tokens={self.num_virtual_tokens}: must be at least 1")
    if self.init not in INIT:
      raise ConfigError(f"peft.init={self.init!r}: accepted are {', '.join(INIT)}")
    if self.init == "text" and not self.init_text and not self.init_ids:
      raise ConfigError("peft.init_text: not set; accepted with peft.init='text' is a text of one piece or more")
    if self.init != "text" and (self.init_text or self.init_ids):
      name = "init_text" if self.init_text else "init_ids"
      raise ConfigError(f"peft.{name}={getattr(self, name)!r}: is read with peft.init='text' only")

  def read_with(self, encode):
    if self.init != "text" or self.init_ids:
      return self
    ids = tuple(encode(self.init_text))
    if not ids:
      raise ConfigError(f"peft.init_text={self.init_text!r}: the tokenizer finds no piece in it")
    return dataclasses.replace(self, init_ids=ids)

  def attach(self, params, rng):
    boxes = tree.flatten(params)
    table_VD = boxes["backbone/embed/embedding"].value
    num_rows, num = len(table_VD), self.num_virtual_tokens
    bad = [i for i in self.init_ids if not 0 <= i < num_rows]
    if bad:
      raise ConfigError(f"peft.init_ids: has {bad[0]}, accepted are 0 to {num_rows - 1}")
    if self.init == "random":
      prompt = jax.random.normal(rng, (num, table_VD.shape[1])) * table_VD.std()
    elif self.init == "vocab":
      prompt = table_VD[jax.random.randint(rng, (num,), 0, num_rows)]
    else:
      assert self.init_ids, "`read_with` comes first"
      prompt = table_VD[jnp.resize(jnp.asarray(self.init_ids), (num,))]
    boxes[f"backbone/embed/prompt/{self.adapter}/embedding"] = nn.LogicallyPartitioned(prompt, (None, "embed"))
    return tree.unflatten(boxes)

  def trainable(self, name):
    return in_task_head(name) or f"/prompt/{self.adapter}/" in name

  @property
  def intercept(self):
    return Around(_fill, self)

  def merge(self, params):
    raise ConfigError(
      "peft='prompt': trained embeddings in front of a text are part of the input, so they cannot be merged into a plain model;"
      " such a run is used and evaluated from its own workdir, or exported with --adapter"
    )


def _fill(prompt: Prompt, next_fun, args, kwargs, context):
  """Gives reserved positions, whose ids are negative, the prompt's embeddings."""
  x, module = next_fun(*args, **kwargs), context.module
  if context.method_name != "__call__" or not module.has_variable("params", "prompt"):
    return x
  (ids,), table = args, module.get_variable("params", "prompt")[prompt.adapter]["embedding"]
  own = jnp.take(table, jnp.maximum(-1 - ids, 0), axis=0, mode="clip").astype(x.dtype)
  return jnp.where((ids < 0)[..., None], own, x)
