"""The contract of a fine-tuning method. The base class trains everything and adds nothing."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.head_spec import OVER_VOCABULARY
from lm.models.model import Intercept


@dataclasses.dataclass(frozen=True)
class Peft:
  """Base of all methods; frozen, so that a method is a value and equal methods share compiled steps."""

  # Whether the model is unchanged right after `attach`, and whether `merge` is possible: contract tests read both.
  identity_at_init: ClassVar[bool] = True
  merges: ClassVar[bool] = True

  def read_with(self, encode: Callable[[str], Sequence[int]]) -> "Peft":
    """The method with what it takes of the run's tokenizer, before `attach`. encode: text to ids of pieces."""
    del encode
    return self

  def resolve(self, total_steps: int) -> "Peft":
    """The method with its durations in steps of a run of that length; the one whose `after_update` is called."""
    del total_steps
    return self

  def attach(self, params: dict, rng: jax.Array) -> dict:
    """Adds leaves to the boxed parameters (with logical axis names), once the base is there."""
    del rng
    return params

  def trainable(self, name: str) -> bool:
    """Whether the parameter trains, at least in part; one that does not has neither a gradient nor optimizer state."""
    raise NotImplementedError

  def starts(self, name: str, num_layers: int) -> int | np.ndarray:
    """The step from which a parameter that trains does so; of a stacked leaf possibly one for each layer, [L].

    NEVER (lm.state) of a layer that is frozen: it stays as it is, bit by bit, and its gradient counts nowhere. One that waits
    stays too; the optimizer's moments follow its gradient meanwhile, which is not part of the norm that clips.
    """
    del name, num_layers
    return 0

  @property
  def num_virtual_tokens(self) -> int:
    """Positions that rows leave free in front of every sequence (lm.data.reserve), for `intercept` to fill."""
    return 0

  @property
  def position_shift(self) -> int:
    """By how much `intercept` moves the positions of tokens; with learned ones, rows of the table that they cannot have."""
    return 0

  @property
  def intercept(self) -> Intercept | None:
    """A flax interceptor around the model's modules, or None."""
    return None

  def penalties(self, params: dict) -> dict[str, jax.Array]:
    """Terms to add to the loss, by name."""
    del params
    return {}

  def init_state(self, params: dict) -> Any:
    """State that the method carries from step to step; part of the checkpoint."""
    del params
    return {}

  def after_update(self, params: dict, grads: dict, state: Any, step: jax.Array) -> tuple[dict, Any]:
    """Changes parameters and state after the optimizer's update, inside the jitted step."""
    del grads, step
    return params, state

  def after_average(self, params: dict, moved: dict) -> dict:
    """Changes the mean of the parameters that moved, where an optimizer has one: what is evaluated and saved."""
    del moved
    return params

  def report(self, params: dict) -> dict[str, Any]:
    """What a run's summary.json and its last lines say of the parameters that trained, by name; JSON values."""
    del params
    return {}

  def merge(self, params: dict) -> dict:
    """Plain parameters of the same function, without the method's leaves. params: all, or some with the leaves beside them."""
    return params


@dataclasses.dataclass(frozen=True)
class Around:
  """function(value, next_fun, args, kwargs, context) as an interceptor that is a value: runs that differ in their seed share
  a compiled step only where their methods' interceptors are equal, which two `functools.partial` never are.
  """

  function: Callable[..., Any]
  value: Any

  def __call__(self, next_fun, args, kwargs, context):
    return self.function(self.value, next_fun, args, kwargs, context)


def in_task_head(name: str) -> bool:
  """Whether a parameter is of a head that a task brings. One over the vocabulary is the base's, as `lm_head` is for peft."""
  return name.startswith("head_") and name.removeprefix("head_").split("/")[0] not in OVER_VOCABULARY


def find_kernels(boxes: Mapping[str, Any], setting: str, pattern: str) -> dict[str, Any]:
  """Boxed kernels of the backbone by the path of their module, of those whose path behind "backbone/" the pattern matches.

  Args:
    boxes: boxed parameters by name. setting: what the pattern is called in an error.

  Raises:
    ValueError: the pattern matches none; lists the linear modules.
  """
  kernels = {name.removesuffix("/kernel"): box for name, box in boxes.items() if name.endswith("/kernel")}
  found = {path: box for path, box in kernels.items() if re.fullmatch(f"backbone/(?:{pattern})", path)}
  if not found:
    raise ValueError(f"{setting}={pattern!r}: matches no linear layer; there are {', '.join(kernels)}")
  return found


def at_places(scale: jax.Array, x: jax.Array, args: tuple) -> jax.Array:
  """What to multiply every position of x by: of a linear module [..., N], of experts that of each place's expert.

  Args:
    scale: [1, N] or [N, 1], with experts in front [E, 1, N] or [E, N, 1]. x: [..., any], what the module reads.
    args: of the module's `__call__`; experts are told how to contract (lm/models/moe.py).
  """
  row = scale.reshape(*scale.shape[:-2], 1, -1).astype(x.dtype)
  if len(args) == 2:
    return args[1](jnp.ones((*x.shape[:-1], 1), x.dtype), row)
  return row.reshape((1,) * (x.ndim - 1) + (-1,))
