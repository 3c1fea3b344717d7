"""python -m tools.prepare --data=SOURCE --output=DIR --filters FILTER [FILTER ...]: a clean corpus as jsonl, and a report.

--filters "length(min_words=5)" exact "near(threshold=0.8)" "decontaminate(against='text(test=a.txt)')" redact
run one after the other; `python -m lm.main --list=filters` lists them with their options.
"""

import argparse
import sys
import time
from pathlib import Path

from lm import prepare
from lm.config import parse_plug


def main() -> int:
  """Exit code: 0 written, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", required=True, help="source, e.g. 'text(path=\"a/*.txt\")' or hf:HuggingFaceFW/fineweb-edu")
  parser.add_argument("--filters", required=True, nargs="+", help="in the order in which they are applied")
  parser.add_argument("--output", required=True, type=Path, help="folder to write, a new one")
  parser.add_argument("--split", default=prepare.Prepare.split, help="of the source")
  parser.add_argument("--compress", default=prepare.Prepare.compress, help="gz or zst")
  parser.add_argument("--shard_mb", type=int, default=prepare.Prepare.shard_mb, help="MB of text in a file")
  flags = vars(parser.parse_args())
  try:
    data, filters = parse_plug("data", flags.pop("data")), [parse_plug("filter", each) for each in flags.pop("filters")]
    began = time.perf_counter()
    report = prepare.prepare(prepare.Prepare(data, tuple(filters), **flags))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  seconds, output, before = time.perf_counter() - began, flags["output"], report["before"]
  prepare.table(report).print()
  print(f"{before['documents'] / seconds:,.0f} documents/s, {before['characters'] / 1e6 / seconds:.1f} M characters/s")
  print(f"{output / 'report.json'}; read it as --config.data=\"text(path='{output}/part-*')\"")
  return 0


if __name__ == "__main__":
  sys.exit(main())
