"""python -m tools.aot --config=FILE --topology=v5e:4x4: compiles a run's train step for devices that need not be there.

Says whether it fits, what it computes and sends, and how long a step is predicted to take; no data is read. `--topology=here`
compiles for the attached devices. --config.SETTING=VALUE changes settings, as in lm.main.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path

from lm import command, config
from lm.config import ConfigError
from lm.files import write_json
from lm.main import set_up_process

# Compiling for a TPU needs none: libtpu must not look for one, and two processes may compile at once.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# What libtpu would warn about at length if it were not set; it does not change what is compiled.
QUIET = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}


def main() -> int:
  """Exit code: 0 it fits, 1 it does not, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", required=True, help="a file with get_config(argument)")
  parser.add_argument("--topology", required=True, help="of one slice, e.g. v5e:4x4, v5p:2x2x4, v6e:16x16; or 'here'")
  parser.add_argument("--num_slices", type=int, default=1, help="slices that the data centre's network connects")
  parser.add_argument("--sweep", action="store_true", help="tries meshes, remat and tokens per device; ranks what fits")
  parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
  parser.add_argument("--hlo", type=Path, help="where the compiled text goes")
  args, rest = parser.parse_known_args()
  try:
    overrides, others = command.split_overrides(rest)
    if others:
      raise ConfigError(f"{others[0]}: unknown flag; accepted are those of --help, and --config.SETTING=VALUE")
    return _run(args, config.load(args.config, overrides))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _run(args: argparse.Namespace, cfg: config.Config) -> int:
  if args.sweep and args.hlo:
    raise ConfigError("--hlo: has no effect with --sweep, which compiles many")
  if args.topology == "here":
    if args.num_slices != 1:
      raise ConfigError(f"--num_slices={args.num_slices}: has no effect with --topology=here")
    print(set_up_process())
  elif importlib.util.find_spec("libtpu") is None:
    raise ConfigError(f"--topology={args.topology}: needs libtpu to compile; install it with: pip install 'jax[tpu]'")
  else:
    os.environ.update(ENVIRONMENT)
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
  from lm import build
  from lm.preflight import figures, fit, sweep

  devices = figures.find_devices(args.topology, args.num_slices)
  outline = build.make_outline(cfg, devices)
  if args.sweep:
    found = sweep.sweep(outline, devices, args.topology, print)
    print(sweep.words(found))
    fits, result = bool(found), {"ranked": found}
  else:
    outline = dataclasses.replace(outline, program=fit.settle(outline))
    step = fit.largest(outline)
    result = figures.measure_step(outline, step, args.topology)
    print(figures.words(result))
    fits = result["fits"]
    if not fits:
      helping = fit.alternatives(outline, step, result["hbm_bytes"])
      result["alternatives"] = [{"setting": each.setting, "peak_bytes": each.step.peak_bytes} for each in helping]
      print(fit.ways_out(helping))
    if args.hlo and step.compiled:
      args.hlo.write_text(step.text)
  if args.out:
    write_json(args.out, result)
  return 0 if fits else 1


if __name__ == "__main__":
  sys.exit(main())
