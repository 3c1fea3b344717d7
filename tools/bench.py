"""python -m tools.bench data [--data=...]: what the data wing does in a second on this machine, as one line of JSON."""

import argparse
import contextlib
import json
import sys

from lm import bench
from lm.config import parse_plug


def main() -> int:
  """Exit code: 0 measured, 2 bad input."""
  default = bench.DataBench()
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("what", choices=("data",))
  parser.add_argument("--data", default="pydocs", help="source, e.g. pydocs or 'text(path=\"a.txt\")'")
  parser.add_argument("--task", default="mlm", help="how its text becomes rows")
  parser.add_argument("--tokenizer", default="", help="as config.tokenizer; unset is the one that is trained")
  for name in ("vocab_size", "seq_len", "batch_size"):
    parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
  parser.add_argument("--seconds", type=float, default=default.seconds, help="for which batches are read")
  settings = vars(parser.parse_args())
  settings.pop("what")
  try:
    with contextlib.redirect_stdout(sys.stderr):  # what is said on the way is no figure
      data, task = (parse_plug(kind, settings.pop(kind)) for kind in ("data", "task"))
      found = bench.measure_data(bench.DataBench(data, task, **settings))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(json.dumps(found))
  return 0


if __name__ == "__main__":
  sys.exit(main())
