"""A grid of configs and seeds, run one after the other in one process, and the table that compares them.

Runs that differ only in their seed share one executable (lm.program). A finished trial is skipped, an interrupted one
resumes, a failed one is kept with its error while the others go on.
"""

import importlib.util
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm import config
from lm.config import Config, ConfigError

Trial = tuple[str, int, Config, Path]  # variant, seed, config, workdir
FAILURES = (ValueError, FloatingPointError, OSError)


def load_sweep(path: str) -> dict[str, Any]:
  """The dict of a sweep file's get_sweep(): configs, seeds, metrics; optional baselines and grid.

  grid maps a setting to the values it takes: {"optimizer.learning_rate": [1e-4, 3e-4]}.
  """
  spec = importlib.util.spec_from_file_location("sweep_file", path)
  if not Path(path).is_file() or spec is None or spec.loader is None:
    raise ConfigError(f"{path}: no such sweep file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise ConfigError(f"{path}: has no function get_sweep()")
  sweep = {"baselines": [], "grid": {}, **module.get_sweep()}
  known = {"configs", "seeds", "metrics", "baselines", "grid"}
  if set(sweep) != known:
    raise ConfigError(
      f"{path}: get_sweep() must give configs, seeds, metrics and may give baselines, grid; got {sorted(sweep)}"
    )
  return sweep


def make_trials(sweep: dict[str, Any], directory: Path) -> list[Trial]:
  """All trials with their workdirs: DIR/<config stem>[-<setting>=<value> ...]-s<seed>. Checks every config first."""
  points = [dict(zip(sweep["grid"], values, strict=True)) for values in itertools.product(*sweep["grid"].values())]
  trials = []
  for path, point, seed in itertools.product(sweep["configs"], points, sweep["seeds"]):
    parts = [Path(path.partition(":")[0]).stem, *(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in point.items())]
    variant = "-".join(parts)
    trials.append((variant, seed, config.load(path, {**point, "seed": seed}), directory / f"{variant}-s{seed}"))
  return trials


def run_sweep(
  trials: list[Trial], directory: Path, run_trial: Callable[[Config, Path], dict[str, Any]]
) -> list[dict[str, Any]]:
  """Runs all trials; one record each: variant, seed, workdir, and metrics or the error. Also in DIR/sweep.jsonl."""
  directory.mkdir(parents=True, exist_ok=True)
  records = []
  for variant, seed, cfg, workdir in trials:
    record: dict[str, Any] = {"variant": variant, "seed": seed, "workdir": str(workdir)}
    try:
      summary = run_trial(cfg, workdir)
      record |= {"status": summary["status"], "metrics": summary["metrics"], "time": summary["time"]}
    except FAILURES as error:
      record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
      print(f"{variant} seed {seed} failed: {record['error']}")
    records.append(record)
    (directory / "sweep.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if record["status"] == "interrupted":
      break
  return records


def tabulate(records: list[dict[str, Any]], sweep: dict[str, Any]) -> str:
  """Markdown: per variant the mean and standard deviation over seeds of each metric, before (step 0) and after.

  The last line of each later variant is its paired-by-seed difference to the first one.
  """
  done = [record for record in records if record["status"] == "finished"]
  if not done:
    return "no trial has finished\n"
  variants = list(dict.fromkeys(record["variant"] for record in done))
  by_seed = {v: {r["seed"]: r["metrics"] for r in done if r["variant"] == v} for v in variants}
  lines = ["| variant | seeds | " + " | ".join(sweep["metrics"]) + " |", "|---|---:|" + "---:|" * len(sweep["metrics"])]
  for baseline in [done[0]["metrics"]] if sweep["baselines"] else []:
    cells = [f"{baseline[name]:.3f}" for name in sweep["baselines"]]
    lines.append("| majority class | | " + " | ".join(cells) + " |")
  for variant in variants:
    seeds = by_seed[variant]
    for label, prefix in ((f"{variant}, step 0", "step0/"), (f"**{variant}**", "")):
      cells = [spread([metrics[prefix + name] for metrics in seeds.values()]) for name in sweep["metrics"]]
      lines.append(f"| {label} | {len(seeds)} | " + " | ".join(cells) + " |")
  first = by_seed[variants[0]]
  for variant in variants[1:]:
    shared = sorted(first.keys() & by_seed[variant].keys())
    cells = [spread([first[s][name] - by_seed[variant][s][name] for s in shared], "+") for name in sweep["metrics"]]
    lines.append(f"| {variants[0]} minus {variant}, by seed | {len(shared)} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def spread(values: list[float], sign: str = "") -> str:
  """'0.412 ± 0.010': mean and sample standard deviation; the mean alone of one value."""
  mean = f"{statistics.mean(values):{sign}.3f}"
  return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
