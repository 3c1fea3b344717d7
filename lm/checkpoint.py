"""Checkpoints over Orbax: what a run saves, and how it, or a run that starts from it, reads it back.

The only file that imports Orbax. Its v1 API is where Orbax goes; v1 reads files of v0.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import files, tree
from lm.config import ConfigError
from lm.files import read_json, write_json
from lm.state import TrainState

FORMAT = 1  # of the saved tree; raised when a name or a meaning changes
BEST = "best.json"
COMMITTED = "commit_success.txt"  # Orbax's last file of a checkpoint in an object store


class Checkpoints:
  """The checkpoints of one workdir: the newest `keep`, and the best. Saving is asynchronous; leaving the context waits.

  in_flight: bytes that are being written at once, no fewer than the largest shard has; None: all, which is a second copy.
  """

  def __init__(self, directory: Path, keep: int = 1, in_flight: int | None = None):
    from orbax.checkpoint import v1 as ocp

    self._directory, self._keep = directory, keep
    policy: Any = self  # its `should_preserve` below
    context = ocp.Context()
    context.memory.write_concurrent_bytes = in_flight
    self._checkpointer = ocp.training.Checkpointer(
      files.absolute(directory), preservation_policy=policy, cleanup_tmp_directories=True, context=context
    )
    self._saved_step = self.latest
    self.best: dict[str, Any] | None = read_best(directory)

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    self._checkpointer.close()

  @property
  def latest(self) -> int | None:
    """The newest complete checkpoint's step."""
    found = self._checkpointer.latest
    return None if found is None else found.step

  def save(self, step: int, state: TrainState, with_frozen: bool, progress: dict[str, Any]) -> None:
    """Starts to save, unless that step is there; the arrays are copied before this returns, so the state may be donated.

    progress: JSON values that `read_progress` gives back.
    """
    if step == self._saved_step:
      return
    self._saved_step = step
    self._checkpointer.save_checkpointables_async(step, _saved(state, with_frozen), force=True, custom_metadata=progress)

  def mark_best(self, step: int, metric: str, value: float) -> None:
    """Keeps the checkpoint of a step, which was saved, beside the newest ones, in the place of the best one so far."""
    self.best = {"step": step, "metric": metric, "value": value}
    if jax.process_index() == 0:
      write_json(self._directory / BEST, self.best)

  def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
    """Orbax's question: which of these, oldest first, to keep."""
    del context
    first, best = len(checkpoints) - self._keep, (self.best or {}).get("step")
    return [i >= first or checkpoint.step == best for i, checkpoint in enumerate(checkpoints)]

  def wait(self) -> None:
    """Returns when the last save is durable."""
    self._checkpointer.wait()


def restore(path: Path, abstract: TrainState, with_frozen: bool) -> TrainState:
  """The state that a checkpoint holds, on the shardings of `abstract`; its frozen tree is kept if it was not saved.

  Raises:
    ConfigError: a checkpoint that cannot be read or holds other parameters.
  """
  saved = _load(path, _saved(abstract, with_frozen))
  rest = saved["rest"]
  frozen = rest.get("frozen", abstract.frozen)
  parts = (rest[name] for name in ("opt_state", "peft_state", "loss_scale"))
  return TrainState(rest["step"], saved["params"], frozen, *parts, rest.get("average", {}))


def read_progress(path: Path) -> dict[str, Any]:
  """What was given to `Checkpoints.save` with that checkpoint."""
  return dict(_metadata(path).custom_metadata or {})


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
  """The steps of the checkpoints in a folder, rising.

  In an object store Orbax writes in place and says at last that a checkpoint is whole; elsewhere it renames what is.
  """
  whole = lambda path: not files.is_remote(path) or (path / COMMITTED).exists()
  return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit() and whole(path))


def read_best(directory: Path) -> dict[str, Any] | None:
  """The best checkpoint's step, metric and value; None if there is none, or its save never ended."""
  best = read_json(directory / BEST)
  return best if best and best["step"] in steps(directory) else None


def load_params(
  directory: Path, which: str | int = "last", shardings: Mapping[str, jax.sharding.Sharding] | None = None
) -> tuple[int, dict[str, Any]]:
  """Step and parameter tree (frozen leaves too where they were saved) of one checkpoint of a folder.

  which: as `choose` takes it. shardings: by name, where a parameter goes; those without one are host arrays.

  Raises:
    ConfigError: there is none, or it cannot be read.
  """
  step = choose(directory, which)
  path = directory / str(step)
  metadata = _metadata(path).metadata
  frozen = metadata["rest"].get("frozen") or {}
  wanted = {"params": metadata["params"]} | ({"rest": {"frozen": frozen}} if frozen else {})

  def target(path: Any, leaf: Any) -> Any:
    place = (shardings or {}).get(tree.leaf_name(path).removeprefix("params/").removeprefix("rest/frozen/"))
    return np.zeros(leaf.shape, leaf.dtype) if place is None else jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

  saved = _load(path, jax.tree_util.tree_map_with_path(target, wanted), partial=True)
  return step, tree.merge(saved["params"], saved["rest"]["frozen"] if frozen else {})


def _load(path: Path, abstract: dict[str, Any], partial: bool = False) -> dict[str, Any]:
  """partial: leaves that `abstract` lacks are not read."""
  from orbax.checkpoint import v1 as ocp

  context = ocp.Context()
  context.pytree.loading.partial_load = partial
  try:
    with context:
      return ocp.load_checkpointables(files.absolute(path), abstract)
  except (ValueError, KeyError, OSError, ocp.errors.InvalidLayoutError) as error:
    raise unreadable(path, error) from error


def _metadata(path: Path) -> Any:
  from orbax.checkpoint import v1 as ocp

  try:
    return ocp.checkpointables_metadata(files.absolute(path))
  except (ValueError, KeyError, OSError, ocp.errors.InvalidLayoutError) as error:
    raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> ConfigError:
  """One line for a checkpoint that Orbax refuses."""
  reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
  return ConfigError(f"checkpoint {path} cannot be read: {reason}")


def _saved(state: TrainState, with_frozen: bool) -> dict[str, Any]:
  rest = {"step": state.step, "opt_state": state.opt_state, "peft_state": state.peft_state, "loss_scale": state.loss_scale}
  rest |= {"average": state.average} if state.average else {}  # a checkpoint without one is as it always was
  return {"params": state.params, "rest": rest | ({"frozen": state.frozen} if with_frozen else {})}
