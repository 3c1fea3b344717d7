"""The contract of an evaluator, and the pass over one split that most of them make."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from lm import metrics, sharding
from lm.data import source
from lm.data.loader import EMPTY, EvalLoader, put
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

  @property
  def measures(self) -> bool:
    """Whether there is anything to measure."""
    return True

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

  @property
  def measures(self):
    return any(batch[self.data.key]["weights"].any() for batch, _ in self.loader)

  def shapes(self):
    return [(self.data.key, batch) for batch in self.loader.shapes()]

  def passes(self, params: dict, loader: EvalLoader | None = None) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """(host batch, the eval step's result) for every batch of the split, or of a loader; the next is dispatched meanwhile.

    The result also has "sequence": for each row the number of its first stored sequence, EMPTY where there is none.
    """
    waiting = None
    for batch, sequence_B in self.loader if loader is None else loader:
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

  def predictions(self, params: dict, *names: str) -> tuple[dict[str, float], list[np.ndarray]]:
    """Means of the task's sums, and of rows that have a weight the numbers of their sequences [N], then predictions by name.

    A sequence is an example here: a task that gives several of one is asked by `examples`.
    """
    results, parts = [], []
    for _batch, result in self.passes(params):
      own = {name.split("/", 1)[1]: value for name, value in result.pop("predictions").items()}
      counted = own["weights"] > 0
      parts.append((result.pop("sequence")[counted], *(own[name][counted] for name in names)))
      results.append(result)
    return metrics.divide(*self.means(results)), [np.concatenate(part) for part in zip(*parts, strict=True)]

  def examples(self, params: dict) -> tuple[dict[str, float], Mapping[str, np.ndarray]]:
    """Means of the task's sums, and what it says of all R examples of the split, labelled or not: its joined arrays."""
    store, results, arrays = self.data.store, [], {}
    for _batch, result in self.passes(params):
      filled = (sequence_B := result.pop("sequence")) != EMPTY
      for name, values in result.pop("predictions").items():
        put(arrays, name.split("/", 1)[1], sequence_B[filled], values[filled], store.num_sequences)
      results.append(result)
    return metrics.divide(*self.means(results)), self.data.task.join(arrays, store.owner_N)

  def before(self, curves: Mapping[str, tuple[list[int], list[float]]], name: str) -> list[str]:
    """["step 0 0.123"] of a metric that was evaluated then, else []. curves: of `report.read_metrics`."""
    steps, history = curves.get(f"eval/{self.name}/{name}", ([], []))
    return [f"step 0 {history[0]:.3f}"] if steps[:1] == [0] else []

  def locate(self, number: int) -> dict[str, Any]:
    """Where an example of the split stands, as `lm.data.source.locate` says it."""
    return source.locate(self.run.source(self.stream, self.split), number)

  def quote(self, number: int) -> dict[str, Any]:
    """The same and its texts, as a row of errors.csv begins."""
    example = self.run.source(self.stream, self.split)[number]
    return self.locate(number) | {name: text for name, text in example.items() if name.startswith("text")}
