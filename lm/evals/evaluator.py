"""The contract of an evaluator, and the pass over one split that most of them make."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import jax

from lm import metrics, sharding
from lm.data.loader import EvalLoader
from lm.run import Run
from lm.shapes import Batch


@dataclasses.dataclass
class Evaluator:
  """Base of all evaluators.

  Calling it with the full parameter tree yields (name, value). A name without a slash becomes `eval/<evaluator>/<name>`;
  one with a slash is taken whole (`baseline/xz_bits_per_byte`).
  """

  # The metric that the best checkpoint is kept by; "" where there is none.
  headline: ClassVar[str] = ""

  run: Run
  split: str = "validation"  # which split of the stream
  stream: str = ""  # its name; empty if there is only one
  name: str = ""  # what the run calls it

  def __post_init__(self):
    names = list(self.run.config.all_streams)
    if not self.stream and len(names) > 1:
      raise ValueError(f"evaluators: name the stream to evaluate (stream=...); the run has {', '.join(names)}")
    self.stream = self.stream or names[0]
    if self.stream not in names:
      raise ValueError(f"evaluators: stream {self.stream!r} does not exist; the run has {', '.join(names)}")

  @property
  def periodic(self) -> bool:
    """Whether it runs all `eval_every` steps; the test split is looked at before the first step and after the last."""
    return self.split != "test"

  def shapes(self) -> list[tuple[str, Batch]]:
    """(task key, batch) of every shape it will ask to evaluate, so that all is compiled before the first step."""
    return []

  def __call__(self, params: dict) -> Iterable[tuple[str, float]]:
    raise NotImplementedError

  def report(self, workdir: Path, folder: Path) -> str:
    """What is said of the last evaluation when a run ends or a checkpoint is judged, "" for nothing; folder may get files."""
    del workdir, folder
    return ""


@dataclasses.dataclass
class SplitEvaluator(Evaluator):
  """An evaluator that passes once over all rows of its split."""

  def __post_init__(self):
    super().__post_init__()
    self.data = self.run.load(self.stream, self.split)
    config = self.run.config
    self.loader = EvalLoader(self.data, batch_size=config.batch_size, seq_len=config.seq_len, buckets=config.length_buckets)

  def shapes(self):
    return [(self.data.key, batch) for batch in self.loader.shapes()]

  def passes(self, params: dict) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """(host batch, the eval step's result) for every batch of the split; the next batch is dispatched meanwhile.

    The result also has "sequence": for each row the number of its first stored sequence, EMPTY where there is none.
    """
    waiting = None
    for batch, sequence_B in self.loader:
      placed = sharding.place(batch, self.run.mesh)
      result = (batch, self.run.program.evaluate(self.data.key, params, placed) | {"sequence": sequence_B})
      if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])
      waiting = result
    if waiting is not None:
      yield waiting[0], jax.device_get(waiting[1])

  def means(self, results: Iterable[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """Total sums and weights of the task's losses, by name without the task's key."""
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    strip = lambda parts: {name.split("/", 1)[1]: float(value) for name, value in parts.items()}
    for result in results:
      metrics.add(sums, strip(result["sums"]))
      metrics.add(weights, strip(result["weights"]))
    return sums, weights
