"""A grid of configs and seeds, run one after the other in one process, and the table and picture that compare them.

Runs that differ only in their seed share one executable (lm.program). A finished trial is skipped, an interrupted one
resumes, a failed one is kept with its error while the others go on.
"""

import csv
import dataclasses
import importlib.util
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lm import config, report, seeds
from lm.config import Config, ConfigError
from lm.record import load_config, read_manifest, read_summary

Trial = tuple[str, int, Config, Path]  # variant, seed, config, workdir
Record = dict[str, Any]  # variant, seed, workdir, status, and tokens and metrics, or error
FAILURES = (ValueError, FloatingPointError, OSError)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep file's get_sweep() gives.

  configs: paths; the first is the one that the others are compared with. metrics: names in summary.json.
  baselines: for each metric the name of its baseline, or none at all.
  grid: values by setting, {"optimizer.learning_rate": [1e-4, 3e-4]}; every config takes every combination.
  """

  configs: list[str]
  seeds: list[int]
  metrics: list[str]
  baselines: list[str] = dataclasses.field(default_factory=list)
  grid: dict[str, list] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, kind in (("configs", str), ("seeds", int), ("metrics", str)):
      value = getattr(self, name)
      if not isinstance(value, list | tuple) or not value or not all(type(item) is kind for item in value):
        raise ConfigError(f"{name}={value!r}: must be a list of at least one {kind.__name__}")
    if not isinstance(self.baselines, list | tuple) or len(self.baselines) not in (0, len(self.metrics)):
      raise ConfigError(f"baselines={self.baselines!r}: must be one for each of the {len(self.metrics)} metrics, or none")
    if not isinstance(self.grid, Mapping) or not all(isinstance(v, list | tuple) and v for v in self.grid.values()):
      raise ConfigError(f"grid={self.grid!r}: must map settings to lists of values")


def load_sweep(path: str) -> Sweep:
  """The sweep of a file with get_sweep() -> dict.

  Raises:
    ConfigError: there is no such file, it does not run, or its values are not those of a Sweep.
  """
  if not Path(path).is_file():
    raise ConfigError(f"{path}: no such sweep file")
  spec = importlib.util.spec_from_file_location("sweep_file", path)
  if spec is None or spec.loader is None:
    raise ConfigError(f"{path}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  known = [field.name for field in dataclasses.fields(Sweep)]
  try:
    spec.loader.exec_module(module)
    values = dict(module.get_sweep())
    if set(values) - set(known) or not {"configs", "seeds", "metrics"} <= set(values):
      raise ConfigError(f"get_sweep() must give configs, seeds, metrics and may give baselines, grid; got {sorted(values)}")
    return Sweep(**values)
  except (SyntaxError, ImportError, NameError, TypeError, AttributeError, KeyError) as error:
    raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error


def make_trials(sweep: Sweep, directory: Path, overrides: Iterable[tuple[str, str]] = ()) -> list[Trial]:
  """All trials with their workdirs: DIR/<config stem>[-<argument>][-<setting>=<value> ...]-s<seed>. Checks every config first.

  The argument stands there where a file does so with several. overrides: (setting, value) for all trials; the sweep's own win.

  Raises:
    ConfigError: a config is wrong, or two trials would share a workdir.
  """
  points = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
  files = [path.partition(":")[0] for path in sweep.configs]  # one that stands there with several arguments is told by them
  trials: list[Trial] = []
  for path, point, seed in itertools.product(sweep.configs, points, sweep.seeds):
    file, _, argument = path.partition(":")
    names = [Path(file).stem, argument] if argument and files.count(file) > 1 else [Path(file).stem]
    parts = [*names, *(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in point.items())]
    variant = re.sub(r"[^\w.=+-]+", "_", "-".join(parts))  # a value may hold what a file name may not
    trials.append(
      (variant, seed, config.load(path, {**dict(overrides), **point, "seed": seed}), directory / f"{variant}-s{seed}")
    )
  workdirs = [str(workdir) for *_, workdir in trials]
  twice = sorted({workdir for workdir in workdirs if workdirs.count(workdir) > 1})
  if twice:
    raise ConfigError(
      f"two trials would share the workdir {twice[0]}; configs need names or arguments of their own, seeds and points differ"
    )
  return trials


def preview(trials: list[Trial]) -> report.Table:
  """What would be run, from the configs alone: state of the workdir, parameters, steps and FLOPs of training ('?': of epochs).

  Raises:
    ConfigError: as `build.make_outline`.
  """
  from lm import build

  rows, outlines = [], {}  # of a variant: a seed changes none of its numbers
  for variant, seed, cfg, workdir in trials:
    outline = outlines[variant] = outlines.get(variant) or build.make_outline(cfg)
    program, steps = outline.program, outline.total_steps
    flops = steps and program.flops_per_token(cfg.seq_len) * cfg.batch_size * cfg.seq_len * steps
    state = "finished" if _finished(cfg, workdir) else "goes on" if (workdir / "manifest.json").is_file() else "new"
    counts = [f"{program.num_params[name]:,}" for name in ("total", "trainable")]
    rows.append([f"{variant}-s{seed}", state, *counts, f"{steps:,}" if steps else "?", f"{flops:.2g}" if flops else "?"])
  return report.Table("", ["trial", "state", "parameters", "trainable", "steps", "FLOPs"], rows)


def run_sweep(
  sweep: Sweep, trials: list[Trial], directory: Path, run_trial: Callable[[Config, Path], Mapping[str, Any]]
) -> list[Record]:
  """Runs all trials that have not finished and returns a record of each, also kept in DIR/sweep.jsonl.

  run_trial: takes a config and a workdir, returns the summary.
  """
  directory.mkdir(parents=True, exist_ok=True)
  records: list[Record] = []
  for number, (variant, seed, cfg, workdir) in enumerate(trials, 1):
    record: Record = {"variant": variant, "seed": seed, "workdir": str(workdir)}
    print(f"trial {number}/{len(trials)}: {workdir}", file=sys.stderr)
    try:
      summary = _finished(cfg, workdir) or run_trial(cfg, workdir)
      if summary["status"] == "finished":
        _check_names(sweep, summary["metrics"])
      record |= {"status": summary["status"], "tokens": summary["tokens"], "metrics": summary["metrics"]}
    except FAILURES as error:
      record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
      print(f"{workdir}: failed: {record['error']}", file=sys.stderr)
    records.append(record)
    (directory / "sweep.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    if record["status"] == "interrupted":
      break
  return records


def summarise(records: list[Record], sweep: Sweep) -> dict[str, Any]:
  """What sweep.json holds, over finished trials: by variant what `seeds.describe` says of each metric, and the tokens read.

  differences: first variant minus each other one, over the seeds that both have.
  """
  done = [record for record in records if record["status"] == "finished"]
  values = {record["variant"]: {} for record in done}
  for record in done:
    values[record["variant"]][record["seed"]] = record["metrics"]
  variants = {
    variant: {
      name: seeds.describe({seed: metrics[name] for seed, metrics in by_seed.items() if name in metrics})
      for name in [*(f"step0/{metric}" for metric in sweep.metrics), *sweep.metrics]
    }
    for variant, by_seed in values.items()
  }
  first, *others = variants or [""]
  differences = {
    f"{first} - {other}": {
      name: seeds.describe(
        {seed: values[first][seed][name] - values[other][seed][name] for seed in values[first] if seed in values[other]},
        paired=True,
      )
      for name in sweep.metrics
    }
    for other in others
  }
  baselines = {name: statistics.mean(record["metrics"][name] for record in done) for name in sweep.baselines if done}
  failed = [record for record in records if record["status"] != "finished"]
  tokens = {variant: statistics.mean(r["tokens"] for r in done if r["variant"] == variant) for variant in variants}
  return {"variants": variants, "differences": differences, "baselines": baselines, "tokens": tokens, "unfinished": failed}


def tabulate(summary: dict[str, Any], sweep: Sweep) -> report.Table:
  """Mean ± deviation [95% interval] over seeds: baseline, each variant before (step 0) and after, then paired differences."""
  columns = ["variant", "seeds", *(metric.removeprefix("eval/").replace("/", " ") for metric in sweep.metrics)]
  rows = []
  if summary["baselines"]:
    rows.append([_baseline_label(sweep), "", *(f"{summary['baselines'][name]:.3f}" for name in sweep.baselines)])
  for variant, found in summary["variants"].items():
    for label, prefix in ((f"{variant}, step 0", "step0/"), (variant, "")):
      cells = [found[prefix + name] for name in sweep.metrics]
      rows.append([label, str(len(cells[0]["values"])), *map(seeds.spread, cells)])
  for label, found in summary["differences"].items():
    cells = [found[name] for name in sweep.metrics]
    rows.append([f"{label}, by seed", str(len(cells[0]["values"])), *(seeds.spread(cell, "+") for cell in cells)])
  return report.Table("", columns, rows)


def draw(summary: dict[str, Any], sweep: Sweep, path: Path) -> Path:
  """A panel per metric: a point per seed with the mean as a bar, step 0 hollow beside it, the baseline as a line."""
  variants = list(summary["variants"])
  figure, axes, _ = report.make_panels(len(sweep.metrics), 0)
  for axis, metric, baseline in zip(axes, sweep.metrics, [*sweep.baselines] or [""] * len(sweep.metrics), strict=True):
    for place, variant in enumerate(variants):
      color = report.COLORS[place % len(report.COLORS)]
      for name, shift, face in ((f"step0/{metric}", -0.18, "none"), (metric, 0.12, color)):
        found = summary["variants"][variant][name]
        points = list(found["values"].values())
        offsets = [place + shift + 0.05 * (i - (len(points) - 1) / 2) for i in range(len(points))]
        axis.scatter(offsets, points, s=36, facecolors=face, edgecolors=color, zorder=3)
        if points:
          axis.hlines(found["mean"], place + shift - 0.13, place + shift + 0.13, color=color, lw=2, zorder=2)
    if baseline:
      value = summary["baselines"][baseline]
      axis.axhline(value, ls="--", lw=1.2, color="0.35", label=f"{_baseline_label(sweep)}: {value:.3f}")
    axis.scatter([], [], s=36, facecolors="none", edgecolors="0.35", label="step 0, one point per seed")
    axis.scatter([], [], s=36, color="0.35", label="trained, one point per seed; bar: mean")
    axis.set(ylabel=metric.removeprefix("eval/").replace("/", " ").replace("_", " "))
    axis.set_xticks(range(len(variants)), variants, rotation=20 if len(variants) > 3 else 0)
    axis.set_xlim(-0.6, len(variants) - 0.4)
    axis.set_ylim(*_room_above(axis.get_ylim()))
    axis.legend(fontsize=8, frameon=False, loc="upper center", ncols=1)
  return report.save_figure(figure, path.resolve().parent.name, path)


def write(records: list[Record], sweep: Sweep, directory: Path) -> report.Table:
  """Writes sweep.json, sweep.md, sweep.csv and, once a trial has finished, sweep.png to the directory; returns the table.

  sweep.md says where variants read numbers of tokens that differ by more than 1%: such are not compared at equal cost.
  """
  summary = summarise(records, sweep)
  table = tabulate(summary, sweep)
  (directory / "sweep.json").write_text(json.dumps(summary, indent=2) + "\n")
  errors = "".join(f"- {r['variant']} seed {r['seed']}: {r.get('error', r['status'])}\n" for r in summary["unfinished"])
  counts = summary["tokens"]
  uneven = counts and max(counts.values()) > 1.01 * min(counts.values())
  read = "".join(f"- {variant}: {count:,.0f}\n" for variant, count in counts.items()) if uneven else ""
  parts = [table.markdown(), read and f"\nTokens read in training differ:\n{read}", errors and f"\nNot finished:\n{errors}"]
  (directory / "sweep.md").write_text("".join(parts))
  _write_csv(records, directory / "sweep.csv")
  if summary["variants"]:
    draw(summary, sweep, directory / "sweep.png")
  return table


def _write_csv(records: list[Record], path: Path) -> None:
  """A row per trial, with all that its run measured; empty where it did not."""
  rows = [{**record, **record.get("metrics", {})} for record in records]
  names = dict.fromkeys(name for record in records for name in record.get("metrics", {}))
  with path.open("w", newline="") as file:
    table = csv.DictWriter(file, ["variant", "seed", "status", "tokens", *names], extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)


def _finished(cfg: Config, workdir: Path) -> Mapping[str, Any] | None:
  """The summary of a trial that has finished with this config (execution settings aside), else None."""
  summary = read_summary(workdir)
  if summary.get("status") != "finished" or summary["step"] < read_manifest(workdir)["total_steps"]:
    return None  # or it has more steps to go since then
  same = all(kind == "execution" for *_, kind in config.changes(load_config(workdir), cfg))
  return summary if same else None


def _check_names(sweep: Sweep, metrics: Mapping[str, float]) -> None:
  for name in (*sweep.metrics, *sweep.baselines):
    if name not in metrics:
      known = ", ".join(sorted(n for n in metrics if n.startswith(("eval/", "baseline/"))))
      raise ConfigError(f"metric {name!r}: not a finite value of this run; it has {known}")


def _baseline_label(sweep: Sweep) -> str:
  """['baseline/test_majority_accuracy', ...] -> 'majority'; 'baseline' where the names have no part in common."""
  labels = set()
  for baseline, metric in zip(sweep.baselines, sweep.metrics, strict=True):
    split, kind = ["", *metric.split("/")][-2:]
    labels.add(baseline.rsplit("/", 1)[-1].removeprefix(f"{split}_").removesuffix(kind).strip("_").replace("_", " "))
  return labels.pop() or "baseline" if len(labels) == 1 else "baseline"


def _room_above(limits: tuple[float, float]) -> tuple[float, float]:
  """Limits of an axis with room for a legend."""
  return limits[0], limits[1] + 0.3 * (limits[1] - limits[0])
