"""Pictures and a table of finished or running workdirs: curves.png per run, one comparison over all of them."""

import json
from pathlib import Path
from typing import Any

# Metrics a comparison may show, most telling first; lower is better for those of LOWER.
SHOWN = ("bits_per_byte", "loss", "accuracy", "macro_f1")
LOWER = ("bits_per_byte", "loss", "perplexity")
UNITS = {"loss": "loss (nats per token)", "bits_per_byte": "bits per byte", "accuracy": "accuracy", "macro_f1": "macro F1"}


def read_metrics(workdir: Path) -> dict[str, tuple[list[int], list[float]]]:
  """Curves by name, (steps, values), from metrics.jsonl; values that were not finite are left out."""
  curves: dict[str, tuple[list[int], list[float]]] = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    entry = json.loads(line)
    for name, value in entry.items():
      if name not in ("step", "time") and value is not None:
        steps, values = curves.setdefault(name, ([], []))
        steps.append(entry["step"])
        values.append(value)
  return curves


def find_runs(directory: Path) -> list[Path]:
  """All workdirs in or below a directory, by name.

  Raises:
    ValueError: there is none.
  """
  runs = sorted(path.parent for path in directory.rglob("metrics.jsonl") if path.stat().st_size)
  if not runs:
    raise ValueError(f"{directory}: no run (a folder with metrics.jsonl) in or below it")
  return runs


def draw_run(workdir: Path) -> Path:
  """Writes curves.png: one panel per kind of metric, train and eval curves, baselines as dashed lines."""
  plt = _pyplot()
  curves = read_metrics(workdir)
  kinds = [kind for kind in SHOWN if any(_kind(name) == kind for name in curves)]
  extra = [name for name in ("train/learning_rate", "train/tokens_per_sec") if name in curves]
  figure, axes = plt.subplots(1, len(kinds) + len(extra), figsize=(4.6 * (len(kinds) + len(extra)), 3.6), squeeze=False)
  for axis, kind in zip(axes[0], kinds, strict=False):
    for name, (steps, values) in sorted(curves.items()):
      if _kind(name) != kind:
        continue
      if name.startswith("baseline/"):
        axis.axhline(values[-1], ls="--", lw=1, color="0.45", label=f"{_label(name)} {values[-1]:.3g}")
      else:
        style = {"lw": 1.2, "alpha": 0.8} if name.startswith("train/") else {"lw": 1.8, "marker": "o", "ms": 3.5}
        axis.plot(steps, values, label=_label(name), **style)
    axis.set(xlabel="optimizer step", ylabel=UNITS[kind], title=UNITS[kind].split(" (")[0])
    axis.legend(fontsize=7, frameon=False)
  for axis, name in zip(axes[0][len(kinds) :], extra, strict=True):
    axis.plot(*curves[name], color="0.3", lw=1.2)
    axis.set(xlabel="optimizer step", title=_label(name).removeprefix("train ").replace("_", " "))
  figure.suptitle(workdir.name, fontsize=11)
  return _save(plt, figure, axes[0], workdir / "curves.png")


def compare(directory: Path) -> str:
  """Writes curves.png in every run, comparison.png and comparison.md in the directory; returns the table (Markdown)."""
  runs = find_runs(directory)
  for run in runs:
    draw_run(run)
  _draw_comparison(runs, directory)
  columns = ["run", "status", "steps", "parameters", "trainable", *SHOWN, "tokens/s", "wall time (s)"]
  lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
  lines += ["| " + " | ".join(_row(run, directory)) + " |" for run in runs]
  table = "\n".join(lines) + "\n"
  (directory / "comparison.md").write_text(table)
  return table


def _row(run: Path, directory: Path) -> list[str]:
  path = run / "summary.json"
  summary: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
  name = str(run.relative_to(directory)) if run != directory else run.name
  if not summary:
    steps = max((steps[-1] for steps, _ in read_metrics(run).values()), default=0)
    return [name, "running", str(steps), *["-"] * (len(SHOWN) + 4)]
  metrics = summary["metrics"]

  def value(kind: str) -> str:
    names = sorted(n for n in metrics if n.startswith("eval/") and _kind(n) == kind)
    names = [n for n in names if "/test/" in n] or names
    return f"{metrics[names[0]]:.3f}" if names else "-"

  params = summary["params"]
  return [
    name, summary["status"], str(summary["step"]), f"{params['total']:,}", f"{params['trainable']:,}",
    *(value(kind) for kind in SHOWN), f"{summary['tokens_per_sec']:,.0f}", f"{sum(summary['time'].values()):.0f}",
  ]  # fmt: skip


def _draw_comparison(runs: list[Path], directory: Path) -> Path:
  plt = _pyplot()
  curves = {run: {k: v for k, v in read_metrics(run).items() if not k.startswith("train/")} for run in runs}
  kinds = [kind for kind in SHOWN if any(_kind(name) == kind for found in curves.values() for name in found)]
  figure, axes = plt.subplots(1, max(len(kinds), 1), figsize=(5.4 * max(len(kinds), 1), 4.2), squeeze=False)
  for axis, kind in zip(axes[0], kinds, strict=False):
    for run, found in curves.items():
      name = next((n for n in sorted(found) if n.startswith("eval/") and _kind(n) == kind), None)
      if name is not None:
        axis.plot(
          *found[name], marker="o", ms=3, lw=1.4, label=str(run.relative_to(directory)) if run != directory else run.name
        )
    baselines = {
      name: values[-1] for found in curves.values() for name, (_, values) in found.items() if name.startswith("baseline/")
    }
    for name, value in sorted(baselines.items()):
      if _kind(name) == kind and "test" not in name:
        axis.axhline(value, ls="--", lw=1, color="0.45")
        axis.annotate(_label(name), (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    axis.set(xlabel="optimizer step", ylabel=f"validation {UNITS[kind]}", title=UNITS[kind].split(" (")[0])
    axis.legend(fontsize=7, frameon=False)
  return _save(plt, figure, axes[0], directory / "comparison.png")


def _kind(name: str) -> str:
  """The metric at the end of a name: 'eval/validation/loss' -> 'loss', 'baseline/xz_bits_per_byte' -> 'bits_per_byte'."""
  last = name.rsplit("/", 1)[-1]
  return next((kind for kind in SHOWN if last == kind or (name.startswith("baseline/") and last.endswith(kind))), "")


def _label(name: str) -> str:
  """'eval/validation/loss' -> 'validation', 'baseline/xz_bits_per_byte' -> 'xz', 'train/loss' -> 'train'."""
  parts = name.split("/")
  if parts[0] == "baseline":
    return parts[1].removesuffix("_" + _kind(name)).replace("_", " ")
  return " ".join(parts[1:-1] if parts[0] == "eval" else [*parts[:-1]] if _kind(name) else parts)


def _pyplot():
  import matplotlib

  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  return plt


def _save(plt, figure, axes, path: Path) -> Path:
  for axis in axes:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return path
