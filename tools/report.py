"""python -m tools.report DIR: curves.png in every run below DIR, comparison.png and a table over all of them."""

import argparse
import sys
from pathlib import Path

from lm import report


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("directory", type=Path)
  directory = parser.parse_args().directory
  try:
    comparison = report.compare(directory)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for table in comparison.tables:
    table.print()
  print("\n".join(["pictures:", *(f"  {picture}" for picture in comparison.pictures)]))
  return 0


if __name__ == "__main__":
  sys.exit(main())
