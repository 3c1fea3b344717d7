"""python -m tools.sweep experiments/<slug>/sweep.py --workdir=DIR: runs a grid of configs and seeds, then compares them.

--config.SETTING=VALUE, such as --config.data_dir=DATA, is for every trial.
"""

import argparse
import sys

from lm import device
from lm import sweep as sweeps
from lm.command import split_overrides
from lm.config import ConfigError
from lm.files import local_path
from lm.main import set_up_process, stop_on_signals


def main() -> int:
  """Exit code: 0 all finished, 1 a trial failed or was interrupted, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("sweep", help="a file with get_sweep()")
  parser.add_argument("--workdir", required=True, type=local_path, help="where the trials' workdirs and the table go")
  parser.add_argument("--dry_run", action="store_true", help="say what would be run, with its parameters and FLOPs")
  args, rest = parser.parse_known_args()
  try:
    overrides, unknown = split_overrides(rest)
    if unknown:
      raise ConfigError(f"{unknown[0]}: unknown; see --help")
    sweep = sweeps.load_sweep(args.sweep)
    trials = sweeps.make_trials(sweep, args.workdir, overrides)
    set_up_process()
    if args.dry_run:
      sweeps.preview(trials).print()
      return 0
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  from lm import build, train

  stop = stop_on_signals([])
  run_trial = lambda cfg, workdir: train.train(build.make_run(cfg), workdir, stop=stop)
  records = sweeps.run_sweep(sweep, trials, args.workdir, run_trial)
  sweeps.write(records, sweep, args.workdir).print()
  for record in records:
    if record["status"] != "finished":
      print(f"{record['workdir']}: {record.get('error', record['status'])}", file=sys.stderr)
  print(f"table and picture: {args.workdir / 'sweep.md'}  {args.workdir / 'sweep.png'}")
  return 0 if all(record["status"] == "finished" for record in records) else 1


if __name__ == "__main__":
  device.restart_with_huge_pages()
  sys.exit(main())
