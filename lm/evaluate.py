"""Runs a run's evaluators: names them, compiles what they need, collects what they yield."""

from lm import plug
from lm.config import ConfigError, Plug
from lm.evals.evaluator import Evaluator
from lm.run import Run
from lm.shapes import Batch


def make_evaluators(run: Run) -> dict[str, Evaluator]:
  """The config's evaluators by name, or those of the tasks: '<split>', or '<stream>_<split>' with several streams."""
  named = dict(run.config.evaluators)
  if not named:
    streams = run.config.all_streams
    for stream in streams:
      for kind, split in run.load(stream, "train").task.evaluators:
        name = split if len(streams) == 1 else f"{stream}_{split}"
        named[name] = Plug(kind, (("split", split), ("stream", stream)))
  return {name: plug.make("evaluator", value, run=run) for name, value in named.items()}


def best_metric(name: str, evaluators: dict[str, Evaluator]) -> str:
  """The metric by which the best checkpoint is kept: "auto" is the headline of the first evaluator that has one.

  Raises:
    ConfigError: a metric of no evaluator that runs while training.
  """
  periodic = {key: evaluator for key, evaluator in evaluators.items() if evaluator.periodic}
  if name == "auto":
    return next((f"eval/{key}/{evaluator.headline}" for key, evaluator in periodic.items() if evaluator.headline), "")
  if name and not any(name.startswith(f"eval/{key}/") for key in periodic):
    raise ConfigError(f"config.best_metric={name!r}: accepted are 'auto', '' and eval/<{'|'.join(periodic)}>/<metric>")
  return name


def eval_shapes(evaluators: dict[str, Evaluator]) -> list[tuple[str, Batch]]:
  """(task key, batch) of every shape that the evaluators will ask for."""
  return [shape for evaluator in evaluators.values() for shape in evaluator.shapes()]


def evaluate(evaluators: dict[str, Evaluator], params: dict, periodic_only: bool = False) -> dict[str, float]:
  """All metrics by full name: `eval/<evaluator>/<metric>`, or as yielded where the name has a slash."""
  found = {}
  for name, evaluator in evaluators.items():
    if periodic_only and not evaluator.periodic:
      continue
    for metric, value in evaluator(params):
      found[metric if "/" in metric else f"eval/{name}/{metric}"] = float(value)
  return found
