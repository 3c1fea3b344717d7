"""Pictures and tables of finished or running workdirs: curves.png per run, one comparison over all of them.

Runs that measure the same things share a table, and curves a panel only where they mean the same: a classifier's
accuracy is over examples, a language model's over tokens.
"""

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

from lm import files

# Metrics that are shown, most telling first, and the axis label; {per} is what the values are an average over.
SHOWN = {
  "bits_per_byte": "bits per byte",
  "loss": "loss (nats per {per})",
  "accuracy": "accuracy (share of {per}s)",
  "macro_f1": "macro F1",
  "f1": "F1 (of entities, or of the second label)",
  "pearson": "Pearson correlation",
  "spearman": "Spearman correlation",
  "mse": "mean squared error",
}
SMALL = {"learning_rate": "learning rate", "tokens_per_sec": "tokens/s"}
COLORS = ("#1f77b4", "#d95f02", "#2a9d5c", "#7b5ea7", "#c2185b", "#8c6d31", "#17899b", "#555555")

Curves = dict[str, tuple[list[int], list[float]]]  # name -> steps, values


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells as text; the first column is a name, the others are numbers unless `justify` is "left"."""

  title: str
  columns: list[str]
  rows: list[list[str]]
  justify: Literal["left", "right"] = "right"

  def markdown(self) -> str:
    """A heading if there is a title, and a Markdown table."""
    lines = [self.columns, ["---", *["---:" if self.justify == "right" else "---"] * (len(self.columns) - 1)], *self.rows]
    heading = f"### {self.title}\n\n" if self.title else ""
    return heading + "".join("| " + " | ".join(line) + " |\n" for line in lines)

  def print(self) -> None:
    """To standard output, as wide as the terminal, or 120 columns where it is none; a long cell breaks, none is cut."""
    from rich import box, console, table, text

    output = console.Console()
    if not output.is_terminal:
      output.width = max(output.width, 120)
    grid = table.Table(title=self.title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(self.columns):
      grid.add_column(
        column.replace(" ", "\n", 1), justify=self.justify if index else "left", overflow="fold", vertical="bottom"
      )
    for row in self.rows:
      grid.add_row(*map(text.Text, row))
    output.print(grid)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What `compare` found and wrote. tables: one for each set of runs that measure the same things."""

  tables: list[Table]
  pictures: list[Path]

  def markdown(self) -> str:
    """All tables, as in comparison.md."""
    return "\n".join(table.markdown() for table in self.tables)


def read_metrics(workdir: Path) -> Curves:
  """Curves by name from metrics.jsonl, none without one. Left out: values not finite, and a last line still being written."""
  curves: Curves = {}
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
  for line in lines if not lines or lines[-1].endswith("\n") else lines[:-1]:
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
  runs = [path.parent for path in files.find(directory, "metrics.jsonl") if path.read_bytes()]
  if not runs:
    raise ValueError(f"{directory}: no run (a folder with metrics.jsonl) in or below it")
  return runs


def draw_run(workdir: Path) -> Path:
  """Writes curves.png: a panel per metric with training, evaluations and baselines; below, learning rate and speed."""
  curves = read_metrics(workdir)
  names = sorted(name for name in curves if _kind(name) and not name.startswith("baseline/"))
  if any(name.startswith("train/") and name.count("/") == 2 for name in names):
    names = [name for name in names if name != "train/loss"]  # the weighted sum of several streams fits no panel's unit
  panels: dict[str, list[str]] = {}
  for name in sorted(names, key=lambda name: list(SHOWN).index(_kind(name))):
    panels.setdefault(_axis_label(name, curves), []).append(name)
  small = [name for name in SMALL if f"train/{name}" in curves]
  figure, axes, below = make_panels(len(panels), len(small))
  colors = {source: COLORS[i % len(COLORS)] for i, source in enumerate(sorted({_source(name) for name in names}))}
  for axis, (label, members) in zip(axes, panels.items(), strict=True):
    for name in members:
      in_training = name.startswith("train/")
      style = {"lw": 1.1, "alpha": 0.55, "zorder": 1} if in_training else {"lw": 1.8, "marker": "o", "ms": 4, "zorder": 3}
      axis.plot(*curves[name], label=_source(name), color=colors[_source(name)], **style)
    _draw_baselines(axis, curves, members)
    _finish(axis, label)
  for axis, name in zip(below, small, strict=True):
    axis.plot(*curves[f"train/{name}"], color="0.35", lw=1.2)
    axis.set_ylim(bottom=0)
    _finish(axis, SMALL[name])
  return save_figure(figure, workdir.resolve().name, workdir / "curves.png")


def compare(directory: Path) -> Comparison:
  """Writes curves.png in every run, comparison.png and comparison.md in the directory.

  Raises:
    ValueError: there is no run in or below the directory.
  """
  runs = {_run_name(run, directory): run for run in find_runs(directory)}
  curves = {name: read_metrics(run) for name, run in runs.items()}
  pictures = [draw_run(run) for run in runs.values()]
  pictures.append(_draw_comparison(curves, directory))
  groups: dict[tuple[str, ...], list[str]] = {}
  for name, found in curves.items():
    groups.setdefault(_tabulated(found), []).append(name)
  tables = []
  for metrics, names in groups.items():
    headings = [f"{_source(metric)} {_kind(metric)}".replace("_", " ") for metric in metrics]
    rows = [_row(name, runs[name], curves[name], metrics) for name in names]
    tables.append(Table("", ["run", *headings, "steps", "parameters", "trainable", "tokens/s", "wall time"], rows))
  comparison = Comparison(tables, pictures)
  files.write(directory / "comparison.md", comparison.markdown().encode())
  return comparison


def _row(name: str, run: Path, curves: Curves, metrics: tuple[str, ...]) -> list[str]:
  """Final values, with the best in parentheses where it is another one; never of a test split, which nothing may select on."""
  path = run / "summary.json"
  summary: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
  best = {key: entry["value"] for key, entry in summary.get("best", {}).items()}

  def cell(metric: str) -> str:
    final = f"{curves[metric][1][-1]:.3f}"
    other = f"{best.get(metric, curves[metric][1][-1]):.3f}"
    return final if other == final or _split(metric) == "test" else f"{final} (best {other})"

  cells = [cell(metric) for metric in metrics]
  if not summary:
    step = max((steps[-1] for steps, _ in curves.values()), default=0)
    return [f"{name} (running)", *cells, str(step), *["-"] * 4]
  label = name if summary["status"] == "finished" else f"{name} ({summary['status']})"
  params, seconds = summary["params"], sum(summary["time"].values())
  counts = [f"{summary['step']:,}", _short(params["total"]), _short(params["trainable"])]
  return [label, *cells, *counts, f"{summary['tokens_per_sec']:,.0f}", f"{seconds:,.0f} s"]


def _draw_comparison(curves: dict[str, Curves], directory: Path) -> Path:
  """One panel for each metric and unit, over the validation split where there is one; a variant's seeds share a color."""
  panels: dict[tuple[int, str], list[tuple[str, str]]] = {}  # (order, axis label) -> (run, metric)
  for run, found in curves.items():
    measured = _measured(found)
    validated = {(_stream(name), _kind(name)) for name in measured if _split(name) != "test"}
    for name in measured:
      if _split(name) != "test" or (_stream(name), _kind(name)) not in validated:
        key = (list(SHOWN).index(_kind(name)), f"{_split(name)} {_axis_label(name, found)}".strip())
        panels.setdefault(key, []).append((run, name))
  variants = list(dict.fromkeys(_variant(run) for run in curves))
  figure, axes, _ = make_panels(len(panels), 0)
  for axis, ((_, label), members) in zip(axes, sorted(panels.items()), strict=True):
    labels: set[str] = set()
    for run, name in members:
      line = f"{_variant(run)} {_stream(name)}".strip()
      color = COLORS[variants.index(_variant(run)) % len(COLORS)]
      axis.plot(*curves[run][name], marker="o", ms=3.5, lw=1.4, color=color, label=None if line in labels else line)
      labels.add(line)
    together = {name: curve for run, _ in members for name, curve in curves[run].items()}
    _draw_baselines(axis, together, [name for _, name in members])
    _finish(axis, label)
  return save_figure(figure, f"runs in {directory.resolve().name}", directory / "comparison.png")


def _draw_baselines(axis: Any, curves: Curves, members: list[str]) -> None:
  """Dashed lines for baseline/<split>_<name>_<metric> of the panel's splits; without a split, of every split."""
  kind, splits = _kind(members[0]), {_split(name) for name in members}
  found = [name for name in sorted(curves) if name.startswith("baseline/") and _kind(name) == kind]
  found = [name for name in found if _split(name) in (*splits, "")]
  if _per(members[0], curves) == "token":
    found = [name for name in found if "majority" not in name]  # the commonest class: a baseline of examples
  for name, dashes in zip(found, ("--", ":", "-."), strict=False):
    value = curves[name][1][-1]
    axis.axhline(value, ls=dashes, lw=1.2, color="0.35", zorder=2, label=f"{_source(name)}: {value:.3g}")


def _measured(curves: Curves) -> tuple[str, ...]:
  """The evaluation metrics of a run that are shown, in the order of SHOWN, validation before test."""
  names = [name for name in curves if name.startswith("eval/") and _kind(name) and not _squared(name, curves)]
  return tuple(sorted(names, key=lambda name: (list(SHOWN).index(_kind(name)), _split(name) == "test", name)))


def _tabulated(curves: Curves) -> tuple[str, ...]:
  """The measured metrics without the losses of classifiers, which are in the pictures."""
  return tuple(name for name in _measured(curves) if _kind(name) != "loss" or _per(name, curves) == "token")


def _kind(name: str) -> str:
  """The metric at the end of a name: 'eval/validation/loss' -> 'loss', 'baseline/xz_bits_per_byte' -> 'bits_per_byte'."""
  last = name.rsplit("/", 1)[-1]
  return next((kind for kind in SHOWN if last == kind or (name.startswith("baseline/") and last.endswith(kind))), "")


def _source(name: str) -> str:
  """'eval/validation/loss' -> 'validation', 'train/docs/loss' -> 'train docs', 'baseline/xz_bits_per_byte' -> 'xz'."""
  parts = name.split("/")
  if parts[0] == "baseline":
    return parts[1].removesuffix("_" + _kind(name)).replace("_", " ")
  return " ".join(parts[1:-1] if parts[0] == "eval" else parts[:-1])


def _split(name: str) -> str:
  """'eval/docs_validation/loss' -> 'validation', 'baseline/test_majority_accuracy' -> 'test', else ''."""
  return next((split for split in ("validation", "test", "train") if split in re.split("[/_]", name)), "")


def _stream(name: str) -> str:
  """'eval/docs_validation/loss' -> 'docs', 'train/docs/loss' -> 'docs', 'eval/validation/loss' -> ''."""
  return re.sub("_?(validation|test|train)$", "", "/".join(name.split("/")[1:-1]))


def _per(name: str, curves: Curves) -> str:
  """What a metric is an average over: 'example' where the same stream has a macro F1, else 'token'."""
  classified = {_stream(other) for other in curves if other.startswith("eval/") and _kind(other) == "macro_f1"}
  return "example" if _stream(name) in classified else "token"


def _squared(name: str, curves: Curves) -> bool:
  """Whether a loss is a squared error: the same stream has an mse, which says the same of evaluations."""
  return _kind(name) == "loss" and _stream(name) in {_stream(other) for other in curves if _kind(other) == "mse"}


def _axis_label(name: str, curves: Curves) -> str:
  return SHOWN["mse" if _squared(name, curves) else _kind(name)].format(per=_per(name, curves))


def _variant(run: str) -> str:
  """The run's name without its seed: 'sweep/full-s0' -> 'sweep/full'."""
  return re.sub(r"-s\d+$", "", run)


def _short(count: int) -> str:
  """3344576 -> '3.34M', 92634 -> '92.6k'."""
  scale, unit = next((pair for pair in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= pair[0]), (1, ""))
  return f"{count / scale:.3g}{unit}"


def _run_name(run: Path, directory: Path) -> str:
  return run.resolve().name if run == directory else str(run.relative_to(directory))


def make_panels(count: int, small: int) -> tuple[Any, list[Any], list[Any]]:
  """A figure with `count` panels, three in a row at most, and `small` flat ones in a row below."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  columns = min(max(count, 1), 3)
  rows = -(-count // columns)
  heights = [3.4] * rows + [1.7] * bool(small)
  figure = Figure(figsize=(max(4.8 * columns, 6.4), max(sum(heights), 1.7) + 0.5))
  figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
  FigureCanvasAgg(figure)
  grid = figure.add_gridspec(max(len(heights), 1), 1, height_ratios=heights or [1])
  axes: list[Any] = []
  for row in range(rows):
    inner = grid[row].subgridspec(1, columns)
    axes += [figure.add_subplot(inner[column]) for column in range(min(columns, count - row * columns))]
  inner = grid[rows].subgridspec(1, small) if small else ()
  return figure, axes, [figure.add_subplot(inner[column]) for column in range(small)]


def _finish(axis: Any, label: str) -> None:
  axis.set(xlabel="optimizer step", ylabel=label)
  axis.xaxis.get_major_locator().set_params(integer=True)
  if axis.get_legend_handles_labels()[0]:
    axis.legend(fontsize=8, frameon=False)


def save_figure(figure: Any, title: str, path: Path) -> Path:
  """Writes a matplotlib figure under one title, its panels in the house's look."""
  figure.suptitle(title, fontsize=12, fontweight="bold")
  for axis in figure.axes:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.03)
  picture = io.BytesIO()
  figure.savefig(picture, dpi=110, format="png")
  files.write(path, picture.getvalue())
  return path
