"""Checkpoints over Orbax: what a run saves, and how it, or a run that starts from it, reads it back.

The only file that imports Orbax. Its v1 API is where Orbax goes; v1 reads files of v0.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import tree
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


def choose(directory: Path, which: str | int = "last") -> int:
  """The step of the checkpoint in a folder that is "last", "best" by the run's own record, or of that number.

  Raises:
    ConfigError: there is no such checkpoint; it lists the steps that exist.
  """
  found = steps(directory)
  if not found:
    raise ConfigError(f"{directory}: there is no checkpoint")
  exist = f"{directory} has the steps {', '.join(map(str, found))}"
  if which == "last":
    return found[-1]
  best = read_best(directory)
  if which == "best" and best is None:
    raise ConfigError(f"checkpoint='best': the run recorded none; {exist}")
  chosen = str(best["step"] if which == "best" and best else which)
  if not chosen.isdecimal():
    raise ConfigError(f"checkpoint={which!r}: accepted are 'last', 'best' or the number of a step; {exist}")
  if int(chosen) not in found:
    raise ConfigError(f"checkpoint={which!r}: there is no such step; {exist}")
  return int(chosen)


def steps(directory: Path) -> list[int]:
  """The steps of the checkpoints in a folder, rising."""
  return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit())


def read_best(directory: Path) -> dict[str, Any] | None:
  """The best checkpoint's step, metric and value; None if there is none, or its save never ended."""
  path = directory / "best.json"
  best = json.loads(path.read_text()) if path.is_file() else None
  return best if best and best["step"] in steps(directory) else None


def check_format(workdir: Path) -> None:
  """Raises ConfigError if a run in this folder was written by a later version of this code than it can read."""
  path = workdir / "manifest.json"
  found = json.loads(path.read_text())["format"] if path.is_file() else FORMAT
  if found > FORMAT:
    raise ConfigError(f"{workdir}: has format {found}, this version of lm reads formats up to {FORMAT}; install a later lm")


def load_params(directory: Path, which: str | int = "last") -> tuple[int, dict[str, Any]]:
  """Step and parameter tree (host arrays; frozen leaves too where they were saved) of one checkpoint of a folder.

  which: as `choose` takes it.

  Raises:
    ConfigError: there is none, or it cannot be read.
  """
  from orbax.checkpoint import v1 as ocp

  step = choose(directory, which)
  path = directory / str(step)
  # The optimizer's state beside the frozen leaves is not read.
  options = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
  try:
    metadata = ocp.checkpointables_metadata(str(path.absolute())).metadata
    frozen = metadata["rest"].get("frozen") or {}
    wanted = {"params": metadata["params"]} | ({"rest": {"frozen": frozen}} if frozen else {})
    to_host = lambda leaf: np.zeros(leaf.shape, leaf.dtype)
    with ocp.Context(pytree_options=options):
      saved = ocp.load_checkpointables(str(path.absolute()), jax.tree.map(to_host, wanted))
  except (ValueError, KeyError, OSError, ocp.errors.InvalidLayoutError) as error:
    raise unreadable(path, error) from error
  return step, tree.merge(saved["params"], saved["rest"]["frozen"] if frozen else {})


def unreadable(path: Path, error: BaseException) -> ConfigError:
  """One line for a checkpoint that Orbax refuses."""
  return ConfigError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _saved(state: TrainState, with_frozen: bool) -> dict[str, Any]:
  rest = {"step": state.step, "opt_state": state.opt_state, "peft_state": state.peft_state}
  return {"params": state.params, "rest": rest | ({"frozen": state.frozen} if with_frozen else {})}
