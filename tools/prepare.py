"""python -m tools.prepare filter|store: a corpus made clean, and a corpus tokenised on many machines.

filter --data=SOURCE --output=DIR --filters "length(min_words=5)" exact near "decontaminate(against='text(test=a.txt)')" redact
  The filters run one after the other (python -m lm.main --list=filters); DIR gets jsonl and report.json.
store --config=FILE [--config.SETTING=VALUE ...] [--parts=64] [--runner=DirectRunner ...]
  An Apache Beam pipeline builds the tokenised data of a config, which its run then finds. Flags that are not ours are Beam's.
"""

import argparse
import sys
import time

from lm import command as command_line
from lm import config, prepare
from lm.config import ConfigError, parse_plug
from lm.files import local_path

PARTS = 64


def main() -> int:
  """Exit code: 0 written, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  cleaning, storing = (commands.add_parser(name, allow_abbrev=False) for name in ("filter", "store"))
  cleaning.add_argument("--data", required=True, help="source, e.g. 'text(path=\"a/*.txt\")' or hf:HuggingFaceFW/fineweb-edu")
  cleaning.add_argument("--filters", required=True, nargs="+", help="in the order in which they are applied")
  cleaning.add_argument("--output", required=True, type=local_path, help="folder to write, a new one")
  cleaning.add_argument("--compress", default=prepare.Prepare.compress, help="gz or zst")
  cleaning.add_argument("--shard_mb", type=int, default=prepare.Prepare.shard_mb, help="MB of text in a file")
  storing.add_argument("--config", required=True, help="as that of lm.main, with overrides --config.SETTING=VALUE")
  storing.add_argument("--parts", type=int, default=PARTS, help="pieces of work, each encoded by one worker")
  for command in (cleaning, storing):
    command.add_argument("--split", default=prepare.Prepare.split, help="of the source")
  args, others = parser.parse_known_args()
  flags = vars(args)
  try:
    if flags.pop("command") == "store":
      overrides, options = command_line.split_overrides(others)
      cfg = config.load(flags["config"], overrides)
      print("\n".join(prepare.build_stores(cfg, flags["split"], flags["parts"], options)))
    elif others:
      raise ConfigError(f"{others[0]}: unknown flag; see --help")
    else:
      _filter(flags)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


def _filter(flags: dict) -> None:
  data, filters = parse_plug("data", flags.pop("data")), [parse_plug("filter", each) for each in flags.pop("filters")]
  began = time.perf_counter()
  report = prepare.prepare(prepare.Prepare(data, tuple(filters), **flags))
  seconds, output, before = time.perf_counter() - began, flags["output"], report["before"]
  prepare.table(report).print()
  print(f"{before['documents'] / seconds:,.0f} documents/s, {before['characters'] / 1e6 / seconds:.1f} M characters/s")
  print(f"{output / 'report.json'}; read it as --config.data=\"text(path='{output}/part-*')\"")


if __name__ == "__main__":
  sys.exit(main())
