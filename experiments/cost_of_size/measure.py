"""Seconds of a train step and of its compilation over five sizes, one at a time, with the exponents that fit them.

python -m experiments.cost_of_size.measure --to=experiments/cost_of_size

Beside each exponent stands that of the arithmetic, 6 N + 12 L H C T FLOPs a token. Takes four minutes on two CPU cores.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lm import build, config, device, report
from lm.bench import step
from lm.files import local_path

BASE = {"num_layers": 4, "model_dim": 256, "seq_len": 128, "vocab_size": 1024, "batch_size": 8}
SIZES = {
  "num_layers": (2, 4, 8, 16),
  "model_dim": (128, 256, 512, 768),
  "seq_len": (64, 128, 256, 512),
  "vocab_size": (1024, 4096, 16384, 65536),
  "batch_size": (4, 8, 16, 32),
}
OF_BATCH = ("seq_len", "batch_size")  # settings of the run; the others are of the model
HEAD = 64  # channels of an attention head
ROUNDS, STEPS = 3, 4


def measure(sizes: dict[str, int]) -> dict[str, float]:
  """Of one run: seconds of a step and of compilation, and the FLOPs of a step."""
  model = {name: size for name, size in sizes.items() if name not in OF_BATCH}
  heads, width = model["model_dim"] // HEAD, 4 * model["model_dim"]
  settings = {name: sizes[name] for name in OF_BATCH}
  settings |= {"model": {"name": "gpt2", **model, "num_heads": heads, "ffn_dim": width, "max_len": sizes["seq_len"]}}
  run = build.make_run(config.from_dict({"tokenizer": "bytes", "data": "pydocs", "task": "causal", **settings}))
  found = step.measure(run, ROUNDS, STEPS, with_peer=False)
  flops = run.program.flops_per_token(sizes["seq_len"]) * sizes["seq_len"] * sizes["batch_size"]
  return {"step_seconds": found["step_seconds"], "compile_seconds": found["compile_seconds"], "flops": flops}


def exponent(sizes: list[int], values: list[float]) -> float:
  """p of the line value = c size^p through their logarithms."""
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def main() -> int:
  """Exit code 0."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--to", required=True, type=local_path, help="folder for results.json and results.png")
  args = parser.parse_args()
  import jax

  from lm.main import set_up_process

  set_up_process()
  jax.config.update("jax_enable_compilation_cache", False)
  found: dict[str, Any] = {}
  known: dict[tuple, dict[str, float]] = {}
  for name, sizes in SIZES.items():
    points = []
    for size in sizes:
      chosen = BASE | {name: size}
      key = tuple(chosen.values())
      known[key] = known.get(key) or measure(chosen)
      points.append({"size": size, **known[key]})
      print(name, points[-1], file=sys.stderr)
    fit = {kind: round(exponent(list(sizes), [point[kind] for point in points]), 2) for kind in points[0] if kind != "size"}
    found[name] = {"points": points, "exponents": fit}
  (args.to / "results.json").write_text(
    json.dumps({"base": BASE, "cores": device.num_cores(), "sizes": found}, indent=1) + "\n"
  )
  draw(found, args.to / "results.png")
  rows = [
    [name, *(str(each["exponents"][kind]) for kind in ("step_seconds", "flops", "compile_seconds"))]
    for name, each in found.items()
  ]
  print(report.Table("", ["exponent of", "a step", "its arithmetic", "compilation"], rows).markdown())
  return 0


def draw(found: dict[str, Any], path: Path) -> None:
  """A panel per size: seconds of a step and of compilation, and what the arithmetic says of a step, both axes logarithmic."""
  figure, axes, _ = report.make_panels(len(found), 0)
  for axis, (name, each) in zip(axes, found.items(), strict=True):
    sizes = [point["size"] for point in each["points"]]
    series = {
      kind: np.asarray([point[kind] for point in each["points"]]) for kind in ("step_seconds", "compile_seconds", "flops")
    }
    middle = sizes.index(BASE[name])
    expected = series["flops"] * series["step_seconds"][middle] / series["flops"][middle]
    fit = each["exponents"]
    axis.loglog(sizes, series["step_seconds"], "o-", color=report.COLORS[0], label=f"step, size^{fit['step_seconds']}")
    axis.loglog(sizes, expected, "--", color="0.35", label=f"arithmetic, size^{fit['flops']}")
    axis.loglog(
      sizes, series["compile_seconds"], "s-", color=report.COLORS[1], label=f"compilation, size^{fit['compile_seconds']}"
    )
    axis.set(xlabel=name, ylabel="seconds")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)
  report.save_figure(figure, "cost against size", path)


if __name__ == "__main__":
  device.restart_with_huge_pages()
  sys.exit(main())
