"""A run as a value: what `build.make_run` assembles and everything else starts from."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from lm import sharding
from lm.config import Config
from lm.data.loader import Loader, StreamData
from lm.data.tokenizer import Tokenizer
from lm.program import Program
from lm.shapes import Batch


@dataclasses.dataclass(frozen=True)
class Base:
  """The parameters a run starts from: its workdir, the step, their hash, and the leaves by name.

  sha256: None where no process has all of them, as of a Hugging Face directory that several read.
  """

  workdir: Path
  step: int
  sha256: str | None
  params: Mapping[str, Any]
  notice: str  # one line: which of the run's own leaves are new, which of the base's are left out


@dataclasses.dataclass(frozen=True)
class Outline:
  """What of a run decides its compiled train step; made without its data too (`build.make_outline`)."""

  config: Config
  program: Program
  batches: tuple[Batch, ...]  # an empty one of every shape
  total_steps: int | None  # None: epochs of data that are not there
  notes: tuple[str, ...] = ()  # what was not there, a line each


@dataclasses.dataclass(frozen=True)
class Run:
  """All parts of one run. Nothing here is changed while it trains."""

  config: Config
  program: Program
  tokenizer: Tokenizer
  loader: Loader
  total_steps: int
  schedule: Callable[[Any], Any]  # step -> learning rate
  load: Callable[[str, str], StreamData]  # (stream's name, split) -> its stored rows, built on first use
  source: Callable[[str, str], Any]  # (stream's name, split) -> its source of raw examples
  base: Base | None

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The device mesh."""
    return self.program.spec.mesh

  @property
  def outline(self) -> Outline:
    """What decides its compiled step."""
    return Outline(self.config, self.program, tuple(self.loader.shapes()), self.total_steps)

  @property
  def tasks(self) -> dict[str, Any]:
    """Tasks by the key of their arrays in a batch."""
    return dict(self.program.spec.objective.tasks)

  @property
  def described_tasks(self) -> dict[str, dict[str, Any]]:
    """Tasks as plug-ins with all their options, the label set among them: what a manifest and a checkpoint keep."""
    streams = self.config.all_streams
    options = lambda task: {f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.init}
    return {key: {"name": streams[key].task.name, **options(task)} for key, task in self.tasks.items()}

  @property
  def saves_frozen(self) -> bool:
    """Frozen parameters without a base to rebuild them from are part of the checkpoint."""
    return self.base is None

  def init_state(self):
    """A fresh state: random from `init_seed`, then the base's parameters, then the PEFT method's."""
    seed = self.config.seed if self.config.init_seed is None else self.config.init_seed
    return self.program.init(jax.random.key(seed), dict(self.base.params) if self.base else {})

  @property
  def noise_rng(self) -> jax.Array:
    """The key that dropout folds the step into."""
    everywhere = sharding.replicated(self.mesh)
    return jax.jit(lambda: jax.random.key(self.config.seed), out_shardings=everywhere)()
