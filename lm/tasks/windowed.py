"""What tasks share that say something of every place of a text, and so read one that is longer than a row in windows."""

import dataclasses

from lm.config import ConfigError
from lm.data import windows
from lm.data.windows import Window
from lm.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windowed(Task):
  """Base of tasks whose `prepare` gives a sequence for every window of a text, and whose `join` puts them together."""

  window: int = 0  # [tokens] of a sequence at most, specials included; unset takes what a row of the run holds
  stride: int = 0  # [tokens] between the starts of windows; unset takes half of the text that a window holds

  packed = False

  def __post_init__(self):
    for name in ("window", "stride"):
      if getattr(self, name) < 0:
        raise ConfigError(f"task.{name}={getattr(self, name)}: must be at least 0, which leaves it to the run")

  @property
  def num_beside(self) -> int:
    """Tokens of a window at most that are none of the text: specials, and what is asked about it."""
    raise NotImplementedError

  def fitted(self, room):
    if self.window > room:
      raise ConfigError(f"task.window={self.window}: a row of the run holds {room} tokens (config.seq_len)")
    found = dataclasses.replace(self, window=self.window or room)
    if (least := found.window - self.num_beside) < 1:
      raise ConfigError(f"config.seq_len: rows of {found.window} tokens have no room for text beside {self.num_beside} others")
    if self.stride > least:
      raise ConfigError(f"task.stride={self.stride}: a window may hold {least} tokens of text, a larger step leaves some out")
    return found

  def windows(self, length: int, beside: int) -> list[Window]:
    """Those of a text of `length` pieces with `beside` other tokens in each; all of it where the task is of no run yet."""
    size = self.window - beside if self.window else max(length, 1)
    return windows.split(length, size, self.stride or max(size // 2, 1))
