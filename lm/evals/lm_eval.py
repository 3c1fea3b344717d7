"""Tasks of EleutherAI's lm-evaluation-harness (Gao et al. 2021): zero- and few-shot, by log-likelihood or by generation."""

import dataclasses
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from lm.config import ConfigError
from lm.engine import Engine
from lm.evals.evaluator import Evaluator
from lm.files import write_json
from lm.models.model import Model

RESULTS_FILE = "lm_eval.json"
BOOTSTRAP = 1000  # resamples of the standard error of metrics that are no means, such as F1


@dataclasses.dataclass
class Questions:
  """What is asked, and how. Needs the package lm-eval.

  Every text begins with the tokenizer's first token, as documents do in training; the harness's own Hugging Face models do so
  with add_bos_token=True.
  """

  tasks: tuple[str, ...] = ()  # names of tasks and groups of the harness
  include_path: str = ""  # folder of YAML files of tasks, which are then the only ones; "" those that the harness brings
  num_fewshot: int = -1  # solved examples in front of a question; -1 as many as its task says
  limit: int = 0  # examples of each task; 0 all
  max_new_tokens: int = 0  # of an answer that is generated; 0 as its task says
  batch_size: int = 16  # rows at a time

  def __post_init__(self):
    if not self.tasks:
      raise ConfigError("lm_eval: tasks is empty; expected names of the harness, e.g. hellaswag,arc_easy")
    for name, least in (("num_fewshot", -1), ("limit", 0), ("max_new_tokens", 0), ("batch_size", 1)):
      if getattr(self, name) < least:
        raise ConfigError(f"lm_eval: {name}={getattr(self, name)}: must be {least} or more")
    if self.include_path and not Path(self.include_path).is_dir():
      raise ConfigError(f"lm_eval: include_path={self.include_path!r} is no folder")
    if jax.process_count() > 1:
      raise ConfigError("lm_eval: runs on one process; judge a checkpoint with tools.lm_eval on one host")
    self._harness = _import()
    self._manager = self._harness.TaskManager(include_path=self.include_path or None, include_defaults=not self.include_path)
    if unknown := [name for name in self.tasks if name not in self._manager.all_tasks]:
      known = self._manager.all_tasks
      near = known if self.include_path else difflib.get_close_matches(unknown[0], known, n=8)
      raise ConfigError(f"lm_eval: there is no task {', '.join(unknown)}; accepted are {', '.join(near) or 'none'}")

  def ask(self, engine: Engine) -> dict[str, Any]:
    """What the harness finds out, as its `simple_evaluate` gives it."""
    _check_head(engine.model, engine.tasks)
    return self._harness.simple_evaluate(
      model=self._harness.Asked(engine, self.batch_size, self.max_new_tokens),
      tasks=list(self.tasks),
      num_fewshot=None if self.num_fewshot < 0 else self.num_fewshot,
      limit=self.limit or None,
      bootstrap_iters=BOOTSTRAP,
      log_samples=False,
      task_manager=self._manager,
    )

  def tell(self, results: Mapping[str, Any], folder: Path) -> str:
    """A table of them, which go to lm_eval.json in the folder."""
    write_json(folder / RESULTS_FILE, dict(results))
    return f"{self._harness.make_table(results).rstrip()}\n{folder / RESULTS_FILE}"


@dataclasses.dataclass
class LmEval(Questions, Evaluator):
  """Yields <task>_<metric> and its standard error of every task, e.g. eval/<name>/arc_easy_acc; see `Questions`.

  With split=test it runs before the first step and after the last, otherwise at every evaluation. When the run ends its table
  is told; the harness's results go to lm_eval.json.
  """

  def __post_init__(self):
    Evaluator.__post_init__(self)
    _check_head(self.run.program.spec.model, self.run.tasks)
    Questions.__post_init__(self)
    self._latest: dict[str, Any] = {}

  def __call__(self, params):
    run = self.run
    model = dataclasses.replace(run.program.spec.model, tuner=run.program.spec.peft)
    engine = Engine(model, params, run.tokenizer, run.mesh, min(run.config.seq_len, model.max_len), run.tasks)
    self._latest = self.ask(engine)
    yield from flatten(self._latest)

  def report(self, workdir, folder):
    return f"{self.name}:\n{self.tell(self._latest, folder)}"


def flatten(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """(<task>_<metric>, or <task>_<metric>_<filter>, value) of the harness's results."""
  for task, values in results["results"].items():
    for key, value in values.items():
      metric, _, filtered = key.partition(",")
      if filtered and isinstance(value, int | float):
        yield "_".join([task, metric, *([filtered] if filtered != "none" else [])]), float(value)


def _check_head(model: Model, tasks: Iterable[str]) -> None:
  if "lm" not in dict(model.heads):
    raise ConfigError(f"lm_eval: needs an autoregressive model (task causal); this one has {', '.join(tasks)}")


def _import() -> ModuleType:
  """`lm.evals.harness`, whose package tells little while it works."""
  try:
    from lm.evals import harness
  except ModuleNotFoundError as error:
    raise ConfigError(f"lm_eval: {error.name} is not installed; get it: pip install 'lm[eval]'") from error
  logging.getLogger("lm_eval").setLevel(logging.ERROR)
  return harness
