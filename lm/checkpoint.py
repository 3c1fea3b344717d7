"""Checkpoints over Orbax: what a run saves, and how it, or a run that starts from it, reads it back.

The only file that imports Orbax. Its v1 API is where Orbax goes; v1 reads files of v0.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import ConfigError
from lm.state import TrainState

FORMAT = 1  # of the saved tree; raised when a name or a meaning changes


class Checkpoints:
  """The checkpoints of one workdir. Saving is asynchronous; leaving the context waits for it."""

  def __init__(self, directory: Path, keep: int = 1):
    from orbax.checkpoint import v1 as ocp

    latest: Any = ocp.training.preservation_policies.LatestN(keep)
    self._errors = (ValueError, KeyError, OSError, ocp.errors.InvalidLayoutError)
    self._directory = directory
    self._checkpointer = ocp.training.Checkpointer(
      str(directory.absolute()), preservation_policy=latest, cleanup_tmp_directories=True
    )

    self._saved_step = self.latest

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    self._checkpointer.close()

  @property
  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    found = self._checkpointer.latest
    return None if found is None else found.step

  def save(self, step: int, state: TrainState, with_frozen: bool) -> None:
    """Starts to save, unless that step is there; the arrays are copied before this returns, so the state may be donated."""
    if step == self._saved_step:
      return
    self._saved_step = step
    self._checkpointer.save_checkpointables_async(step, _saved(state, with_frozen), force=True)

  def wait(self) -> None:
    """Returns when the last save is durable."""
    self._checkpointer.wait()

  def restore(self, step: int, abstract: TrainState, with_frozen: bool) -> TrainState:
    """The state of a step on the shardings of `abstract`; its frozen tree is kept if it was not saved.

    Raises:
      ConfigError: a checkpoint that cannot be read or holds other parameters.
    """
    try:
      saved = self._checkpointer.load_checkpointables(step, _saved(abstract, with_frozen))
    except self._errors as error:
      raise unreadable(self._directory / str(step), error) from error
    rest = saved["rest"]
    frozen = rest.get("frozen", abstract.frozen)
    return TrainState(rest["step"], saved["params"], frozen, rest["opt_state"], rest["peft_state"])


def load_params(directory: Path) -> tuple[int, dict[str, Any]]:
  """Step and parameter tree (host arrays; frozen leaves too where they were saved) of the newest checkpoint in a workdir.

  Raises:
    ConfigError: there is none, or it cannot be read.
  """
  from orbax.checkpoint import v1 as ocp

  steps = sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())
  if not steps:
    raise ConfigError(f"config.init_from: no checkpoint in {directory}")
  path = directory / str(steps[-1])
  try:
    metadata = ocp.checkpointables_metadata(str(path.absolute())).metadata
    to_host = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    saved = ocp.load_checkpointables(str(path.absolute()), {"params": jax.tree.map(to_host, metadata["params"])})
  except (ValueError, KeyError, OSError, ocp.errors.InvalidLayoutError) as error:
    raise unreadable(path, error) from error
  return steps[-1], saved["params"]


def unreadable(path: Path, error: BaseException) -> ConfigError:
  """One line for a checkpoint that Orbax refuses."""
  return ConfigError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _saved(state: TrainState, with_frozen: bool) -> dict[str, Any]:
  rest = {"step": state.step, "opt_state": state.opt_state, "peft_state": state.peft_state}
  return {"params": state.params, "rest": rest | ({"frozen": state.frozen} if with_frozen else {})}
