"""What the finished runs of an experiment reached: results.jsonl, results.png, and the table for its README.

python -m experiments.collect runs/sst2 --to=experiments/sst2_methods --metric=eval/validation/accuracy \\
  --baseline=baseline/validation_majority_accuracy

runs/sst2/<variant>-s<seed> are the workdirs. A line of results.jsonl is a run; the table has the mean over seeds with their
standard deviation, beside step 0 and the baseline, and of time, memory and speed the medians.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm import record, seeds
from lm.config import ConfigError
from lm.report import Table

Row = dict[str, Any]


def read(runs: Path, metrics: Sequence[str]) -> list[Row]:
  """A row for every finished run below the folder, by variant and seed.

  Raises:
    ConfigError: there is none, or one lacks a metric.
  """
  rows = []
  for path in sorted(runs.glob("*-s*/summary.json")):
    found, summary = re.fullmatch(r"(.+)-s(\d+)", path.parent.name), record.read_summary(path.parent)
    if not found or summary["status"] != "finished":
      continue
    values = summary["metrics"]
    if missing := [name for name in metrics if name not in values]:
      raise ConfigError(f"{path}: has no {missing[0]}; there are {', '.join(sorted(values))}")
    kept = {name: values[name] for name in metrics} | {
      f"step0/{n}": values[f"step0/{n}"] for n in metrics if f"step0/{n}" in values
    }
    spent = {
      "trainable": summary["params"]["trainable"],
      "total": summary["params"]["total"],
      "step": summary["step"],
      "train_seconds": summary["time"]["train"],
      "seconds": round(sum(summary["time"].values()), 1),
      "peak_memory_bytes": summary["peak_memory_bytes"],
    }
    rows.append({"variant": found[1], "seed": int(found[2]), **kept, **spent})
  if not rows:
    raise ConfigError(f"{runs}: holds no finished run; expected folders <variant>-s<seed>")
  return rows


def tabulate(rows: Sequence[Row], metrics: Sequence[str], order: Sequence[str]) -> Table:
  """A line a variant."""
  short = [name.removeprefix("eval/").replace("validation/", "") for name in metrics]
  columns = ["variant", "seeds", *short, "step 0", "trained parameters", "training", "whole run", "peak memory"]
  by_variant = _group(rows)
  lines = []
  for variant in [*order, *(name for name in by_variant if name not in order)]:
    if not (own := by_variant.get(variant)):
      continue
    middle = lambda name, own=own: statistics.median(row[name] for row in own)
    share = f"{own[0]['trainable']:,} ({own[0]['trainable'] / own[0]['total']:.1%})"
    start = ", ".join(f"{own[0][f'step0/{name}']:.3f}" for name in metrics if f"step0/{name}" in own[0])
    costs = [
      f"{middle('train_seconds'):,.0f} s",
      f"{middle('seconds'):,.0f} s",
      f"{middle('peak_memory_bytes') / 2**30:.2f} GiB",
    ]
    values = [seeds.mean_std(seeds.describe({row["seed"]: row[name] for row in own})) for name in metrics]
    lines.append([variant, f"{len(own)}", *values, start, share, *costs])
  return Table("", columns, lines)


def draw(rows: Sequence[Row], metric: str, baseline: float | None, order: Sequence[str], path: Path) -> None:
  """A dot for every seed and a line through their mean, a row a variant; the baseline dashed."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot

  by_variant = _group(rows)
  names = [name for name in order if name in by_variant] + [name for name in by_variant if name not in order]
  figure, axes = pyplot.subplots(figsize=(7, 0.9 + 0.32 * len(names)), layout="constrained")
  for y, name in enumerate(reversed(names)):
    values = [row[metric] for row in by_variant[name]]
    axes.plot([statistics.mean(values)] * 2, [y - 0.3, y + 0.3], color="#1f77b4", linewidth=2)
    axes.plot(values, [y] * len(values), "o", color="#1f77b4", alpha=0.6, markersize=5)
  if baseline is not None:
    axes.axvline(baseline, color="#555555", linestyle="--", linewidth=1, label="baseline")
    axes.legend(loc="lower left")
  axes.set_yticks(range(len(names)), list(reversed(names)))
  axes.set_xlabel(metric.removeprefix("eval/"))
  axes.grid(axis="x", alpha=0.3)
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _group(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
  found: dict[str, list[Row]] = {}
  for row in rows:
    found.setdefault(row["variant"], []).append(row)
  return found


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", type=Path, help="folder of workdirs <variant>-s<seed>")
  parser.add_argument("--to", type=Path, required=True, help="folder of the experiment")
  parser.add_argument("--metric", action="append", required=True, help="in summary.json; the first one is drawn")
  parser.add_argument("--baseline", default="", help="in summary.json, drawn beside the first metric")
  parser.add_argument("--order", default="", help="variants between commas, in the order of the table")
  args = parser.parse_args()
  order = [name for name in args.order.split(",") if name]
  try:
    baselines = [args.baseline] if args.baseline else []
    rows = read(args.runs, [*args.metric, *baselines])
    (args.to / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline = statistics.mean(row[args.baseline] for row in rows) if args.baseline else None
    draw(rows, args.metric[0], baseline, order, args.to / "results.png")
    print(tabulate(rows, args.metric, order).markdown(), end="")
    if baseline is not None:
      print(f"\n{args.baseline}: {baseline:.3f}")
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
