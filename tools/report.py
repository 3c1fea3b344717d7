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
    print(report.compare(directory), end="")
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  pictures = [*(run / "curves.png" for run in report.find_runs(directory)), directory / "comparison.png"]
  print("pictures: " + "  ".join(map(str, pictures)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
