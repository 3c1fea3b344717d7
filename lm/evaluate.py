"""Runs a run's evaluators: names them, compiles what they need, collects what they yield."""

import sys
from pathlib import Path
from typing import Any

from lm import checkpoint, cluster, plug, record, tree
from lm.config import ConfigError, Plug
from lm.evals.evaluator import Evaluator
from lm.files import write_json
from lm.run import Run
from lm.shapes import Batch


def make_evaluators(run: Run) -> dict[str, Evaluator]:
  """The config's evaluators by name, or those of the tasks: '<split>', or '<stream>_<split>' with several streams.

  A task's evaluator is left out, and that is said, where its split is empty or has no row that counts, as without labels.

  Raises:
    ConfigError: the config names one of such a split.
  """
  named = dict(run.config.evaluators)
  if not named:
    streams = run.config.all_streams
    for stream in streams:
      for kind, split in run.load(stream, "train").task.evaluators:
        if not len(run.source(stream, split)):
          notice = f"its {split} split is empty, so nothing is measured there; data.{split}=FILE is the way out"
          print(f"data {streams[stream].data.name!r}: {notice}", file=sys.stderr)
          continue
        name = split if len(streams) == 1 else f"{stream}_{split}"
        named[name] = Plug(kind, (("split", split), ("stream", stream)))
  made = {name: plug.make("evaluator", value, run=run, name=name) for name, value in named.items()}
  for name in [name for name, evaluator in made.items() if not evaluator.measures]:
    lost = made.pop(name)
    notice = f"no row of the {lost.split} split of stream {lost.stream!r} has something to judge by, such as a label"
    if name in dict(run.config.evaluators):
      raise ConfigError(f"config.evaluators.{name}: {notice}")
    print(f"{notice}: nothing is measured there", file=sys.stderr)
  return made


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


def evaluate_workdir(run: Run, workdir: Path, which: str | int = "last") -> dict[str, Any]:
  """Runs all evaluators, those of the test split too, on a checkpoint; returns what it writes to evaluations/<step>.json.

  Their reports are said on stderr as at the end of a run; files of theirs go to evaluations/<step>/.

  Args:
    run: that of the workdir (`build.load_run`), perhaps with other evaluators.
    which: "last", "best" or a step.

  Raises:
    ConfigError: no such checkpoint, or it holds other parameters than the run's.
  """
  step = checkpoint.choose(workdir / "checkpoints", which)
  record.check_built(run, workdir)  # other training rows would mean that held-out ones may have been trained on
  evaluators = make_evaluators(run)
  run.program.compile([], eval_shapes(evaluators))
  found = {
    "step": step,
    "checkpoint": f"checkpoints/{step}",
    "config_sha256": record.read_manifest(workdir)["config_sha256"],
    "metrics": evaluate(evaluators, _load_params(run, workdir, step)),
  }
  if cluster.here().first:
    folder = workdir / "evaluations"
    write_json(folder / f"{step}.json", found)
    for text in filter(None, (evaluator.report(workdir, folder / f"{step}") for evaluator in evaluators.values())):
      print(text, file=sys.stderr)
  return found


def _load_params(run: Run, workdir: Path, step: int) -> dict[str, Any]:
  """The full tree with the PEFT method's leaves, on its devices; what the checkpoint lacks is that of the run's base."""
  record.check_base(run, workdir)
  abstract = run.program.abstract_sharded
  wanted = tree.flatten(tree.merge(abstract.params, abstract.frozen))
  _, saved = checkpoint.load_params(workdir / "checkpoints", step, {name: leaf.sharding for name, leaf in wanted.items()})
  params = tree.flatten(tree.merge(saved, {} if run.saves_frozen else run.init_state().frozen))
  shapes = lambda flat: {(name, leaf.shape) for name, leaf in flat.items()}
  bad = sorted({name for name, _ in shapes(params) ^ shapes(wanted)})
  if bad:
    raise ConfigError(f"{workdir}: step {step} lacks or has other parameters than the run: {', '.join(bad)}")
  return tree.unflatten(params)
