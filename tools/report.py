"""python -m tools.report DIR: curves.png in every run below DIR, comparison.png and a table over all of them."""

import argparse
import sys

from lm import files, report


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("directory")
  args = parser.parse_args()
  try:
    comparison = report.compare(files.path(args.directory, "directory"))
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for table in comparison.tables:
    table.print()
  print("\n".join(["pictures:", *(f"  {picture}" for picture in comparison.pictures)]))
  return 0


if __name__ == "__main__":
  sys.exit(main())
