"""python -m experiments.tpu_preflight.measure [CASE ...]: compiles the cases, or those named (llama2_7b:v5e_4x4).

Each is `python -m tools.aot` in a process of its own. results.json and the table of the README beside it are written after
every case, others keep what they had; --check compares with it instead. A case takes a quarter of a minute to some minutes of
both cores, and no TPU.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.tpu_preflight.cases import CASES, Case
from lm import config, duration
from lm.chips import GIB

FOLDER = Path(__file__).parent
RESULTS, README = FOLDER / "results.json", FOLDER / "README.md"
BEGIN, END = "<!-- table: written by measure.py -->\n", "<!-- end of table -->\n"
KEPT = ("fits", "peak_bytes", "hbm_bytes", "memory", "model_flops", "compiled_flops", "collectives", "step_seconds", "mfu")
KEPT += ("tokens_per_sec_per_chip", "compile_seconds")
PEAK_DRIFT = 0.1  # share that a peak may differ from the stored one, where another version compiles


def compile_case(case: Case) -> dict[str, Any]:
  """What `tools.aot` says of a case, as far as it is kept, with the versions that said it.

  Raises:
    RuntimeError: it wrote nothing, of which its last line; or it takes so much that the compiler gave no step.
  """
  with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "report.json"
    command = [sys.executable, "-m", "tools.aot", f"--config={case.config}", f"--topology={case.topology}", "--out", str(out)]
    command += [f"--num_slices={case.num_slices}"] if case.num_slices > 1 else []
    command += [f"--config.{setting}" for setting in case.settings]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if not out.exists():  # one that does not fit has a report too
      raise RuntimeError((process.stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    report = json.loads(out.read_text())
  if "agreed" not in report:
    raise RuntimeError(f"the compiler refuses it: {report['peak_bytes'] / GIB:.2f} of {report['hbm_bytes'] / GIB:.1f} GiB")
  agreed = {name: value for name, value in report["agreed"].items() if isinstance(value, int | float | str)}
  versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
  return {name: report[name] for name in KEPT} | {"agreed": agreed, "versions": versions}


def read() -> dict[str, dict[str, Any]]:
  """The stored results by the case's name."""
  return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def budget(case: Case) -> float:
  """Tokens of the whole run."""
  cfg = config.load(case.config)
  per_step = cfg.batch_size * cfg.seq_len
  return per_step * duration.steps(cfg.total_steps, "config.total_steps", batch_size=cfg.batch_size, seq_len=cfg.seq_len)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The results as a table in Markdown, in the order of the cases; "-" where there is none."""
  names = ("case", "topology", "chips", "fits", "peak of HBM, GiB", "compiled / model FLOPs", "step, s", "MFU", "tokens/s/chip")
  names += ("tokens, B", "hours", "chip-hours", "compile, s")
  rows: list[tuple[str, ...]] = [names, ("---", "---", *["---:"] * (len(names) - 2))]
  for case in CASES:
    shown = [case.name, f"{case.num_slices} x {case.topology}" if case.num_slices > 1 else case.topology, f"{case.num_devices}"]
    found, tokens = results.get(case.name), budget(case)
    if found is None:
      rows.append((*shown, *["-"] * 6, f"{tokens / 1e9:,.0f}", "-", "-", "-"))
      continue
    chip_hours = tokens / found["tokens_per_sec_per_chip"] / 3600
    rows.append((
      *shown, "yes" if found["fits"] else "**no**", f"{found['peak_bytes'] / GIB:.2f} of {found['hbm_bytes'] / GIB:.1f}",
      f"{found['compiled_flops'] / found['model_flops']:.3f}", f"{found['step_seconds']:.3g}", f"{found['mfu']:.3f}",
      f"{found['tokens_per_sec_per_chip']:,.0f}", f"{tokens / 1e9:,.0f}", f"{chip_hours / case.num_devices:,.0f}",
      f"{chip_hours:,.0f}", f"{found['compile_seconds']:.0f}",
    ))  # fmt: skip
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def complaint(found: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
  """What is wrong with a compilation beside the stored one: it does not fit, or its peak moved. "" where nothing is."""
  peak, limit, old = (size / GIB for size in (found["peak_bytes"], found["hbm_bytes"], stored["peak_bytes"]))
  if not found["fits"]:
    return f"does not fit: {peak:.2f} of {limit:.1f} GiB"
  return f"peak of {peak:.2f} GiB, {old:.2f} are stored" if abs(peak - old) > PEAK_DRIFT * old else ""


def write(results: Mapping[str, Mapping[str, Any]]) -> None:
  """Both files."""
  RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
  put_table(table(results), BEGIN, END)


def put_table(rows: str, begin: str, end: str) -> None:
  """Replaces what stands in the README between two lines."""
  text = README.read_text()
  README.write_text(text[: text.index(begin) + len(begin)] + rows + text[text.index(end) :])


def main() -> int:
  """Exit code: 0 all compiled and fit (and agree with what is stored), 1 one did not."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("case", nargs="*")
  parser.add_argument("--check", action="store_true", help="compares with results.json and writes nothing")
  args = parser.parse_args()
  known = {case.name: case for case in CASES}
  for name in args.case:
    if name not in known:
      parser.error(f"{name}: there are {', '.join(known)}")
  results, good = read(), True
  names = args.case or [name for name in known if name in results or not args.check]
  for name in names:
    if args.check and name not in results:
      parser.error(f"{name}: results.json has none to check against")
  for case in map(known.__getitem__, names):
    try:
      found = compile_case(case)
    except RuntimeError as error:
      print(f"{case.name}: {error}", file=sys.stderr)
      good = False
      continue
    wrong = complaint(found, results[case.name] if args.check else found)
    peak = f"{found['peak_bytes'] / GIB:.2f} of {found['hbm_bytes'] / GIB:.1f} GiB"
    print(f"{case.name}: {wrong or 'fits'}, {peak}, {found['step_seconds']:.3g} s a step predicted")
    good = good and not wrong
    if not args.check:
      results = read() | {case.name: found}
      write(results)
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
