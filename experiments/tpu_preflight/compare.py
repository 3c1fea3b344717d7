"""python -m experiments.tpu_preflight.compare [ROW ...]: the same steps as MaxText's, by the same compiler and the same method.

MaxText's figures are those of its own `train_compile.py` (AI-Hypercomputer/maxtext at e591f30c, jax 0.10.2, libtpu 0.0.42.1,
no XLA flags), read from its compiled text by the method of `lm.preflight.measure`. Model, batch, remat and topology are equal;
parameters and moments are fp32 and compute is bf16 in both. comparison.json and the README's second table are written after
every row.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tpu_preflight import measure
from experiments.tpu_preflight.cases import Case
from lm.chips import GIB

RESULTS = Path(__file__).parent / "comparison.json"
BEGIN, END = "<!-- comparison: written by compare.py -->\n", "<!-- end of comparison -->\n"


@dataclasses.dataclass(frozen=True)
class Row:
  """A step that both compile. step_ms, peak_gib: MaxText's, per device."""

  case: Case
  step_ms: float
  peak_gib: float


def _row(config: str, topology: str, published: tuple[float, float], rows: int, seq_len: int, *settings: str) -> Row:
  """rows: of seq_len tokens, on each chip."""
  case = Case(config, topology)
  sizes = f"batch_size={rows * case.num_devices}", f"seq_len={seq_len}", f"tokens_per_device={rows * seq_len}"
  return Row(dataclasses.replace(case, settings=(*sizes, "total_steps=10_000", *settings)), *published)


LLAMA_2, LLAMA_3, MIXTRAL, GPT_2 = (f"configs/{name}.py" for name in ("llama2_7b", "llama3_8b", "mixtral_8x7b", "gpt2_small"))
ROWS = {
  "gpt2, 8 x 1024, dots": _row(GPT_2, "v5e:2x2", (116, 4.08), 8, 1024, "remat=dots"),
  "gpt2, 8 x 1024, full, fsdp": _row(GPT_2, "v5e:2x2", (125, 1.72), 8, 1024, "remat=full", "mesh.data=1", "mesh.fsdp=-1"),
  "llama2_7b, 1 x 2048, full": _row(LLAMA_2, "v5e:4x4", (1042, 8.12), 1, 2048, "remat=full"),
  "llama2_7b, 2 x 2048, full": _row(LLAMA_2, "v5e:4x4", (2074, 9.24), 2, 2048, "remat=full"),
  "llama2_7b, 4 x 2048, full": _row(LLAMA_2, "v5e:4x4", (4148, 11.30), 4, 2048, "remat=full"),
  "llama2_7b, 1 x 2048, full, 256 chips": _row(LLAMA_2, "v5e:16x16", (1139, 1.88), 1, 2048, "remat=full"),
  "llama3_8b, 1 x 8192, full": _row(LLAMA_3, "v6e:4x4", (1998, 13.84), 1, 8192, "remat=full"),
  "mixtral_8x7b, 1 x 4096, full": _row(
    MIXTRAL, "v5p:2x2x4", (3340, 54.54), 1, 4096, "remat=full", "mesh.expert=1", "model.expert_capacity=0"
  ),
}


def read() -> dict[str, dict[str, Any]]:
  """The stored results by the row's name."""
  return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The results as a table in Markdown; "-" where there is none, and the geometric means of the ratios that there are."""
  names = ("step, rows x tokens on a chip", "topology", "step, ms", "MaxText", "ratio", "peak, GiB", "MaxText", "ratio")
  lines: list[tuple[str, ...]] = [names, ("---", "---", *["---:"] * 6)]
  ratios: list[tuple[float, float]] = []
  for name, row in ROWS.items():
    found = results.get(name)
    if found is None:
      lines.append((name, row.case.topology, "-", f"{row.step_ms:.0f}", "-", "-", f"{row.peak_gib:.2f}", "-"))
      continue
    step_ms, peak_gib = 1e3 * found["step_s"], found["peak_bytes"] / GIB
    ratios.append((step_ms / row.step_ms, peak_gib / row.peak_gib))
    time, memory = ratios[-1]
    lines.append((
      name, row.case.topology, f"{step_ms:.0f}", f"{row.step_ms:.0f}", f"{time:.3f}", f"{peak_gib:.2f}", f"{row.peak_gib:.2f}",
      f"{memory:.3f}",
    ))  # fmt: skip
  if ratios:
    time, memory = (f"{math.exp(sum(map(math.log, each)) / len(each)):.3f}" for each in zip(*ratios, strict=True))
    lines.append((f"geometric mean of {len(ratios)}", "", "", "", time, "", "", memory))
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(results: Mapping[str, Mapping[str, Any]]) -> None:
  """Both files."""
  RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
  measure.put_table(table(results), BEGIN, END)


def main() -> int:
  """Exit code: 0 all compiled, 1 one did not."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("row", nargs="*")
  names, good = parser.parse_args().row or list(ROWS), True
  for name in names:
    if name not in ROWS:
      parser.error(f"{name}: there are {'; '.join(ROWS)}")
  for name in names:
    try:
      found = measure.compile_case(ROWS[name].case)
    except RuntimeError as error:
      print(f"{name}: {error}", file=sys.stderr)
      good = False
      continue
    kept = {"peak_bytes": found["peak_bytes"], "step_s": found["agreed"]["step_s"], "versions": found["versions"]}
    write(read() | {name: kept})
    print(f"{name}: {kept['step_s']:.4g} s, {kept['peak_bytes'] / GIB:.2f} GiB")
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
