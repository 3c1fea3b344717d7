"""python -m experiments.data_store.measure --megabytes=2000: memory and time of storing a text file of that size.

The text is that of `--source` over and over, a number in front of each line. The largest resident size is that of this
process and of one worker.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from lm.data import store, tokenizer
from lm.data.sources.text import Text
from lm.tasks.causal import Causal


def main() -> None:
  """Prints one line of JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--megabytes", type=int, default=2000)
  parser.add_argument("--source", required=True, help="a text file")
  parser.add_argument("--tokenizer", default="runs/tokenizer.model")
  parser.add_argument("--workers", type=int, default=2)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "corpus.txt"
    lines, size, number = Path(args.source).read_text(encoding="utf-8").splitlines(keepends=True), 0, 0
    with path.open("w", encoding="utf-8") as file:
      while size < args.megabytes * 10**6:
        size += file.write(f"{number} {lines[number % len(lines)]}")
        number += 1
    del lines
    tok = tokenizer.load(args.tokenizer)
    seconds = []
    for _ in range(2):  # built, then opened
      began = time.perf_counter()
      built = store.build(Text(path=str(path)), tok, Causal(), Path(folder), args.workers)
      seconds.append(round(time.perf_counter() - began, 2))
    peaks = [resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {"text_mb": path.stat().st_size / 1e6, "documents": built.num_sequences, "tokens": int(built.lengths.sum())}
    found |= {"build_seconds": seconds[0], "open_seconds": seconds[1], "peak_mb": peaks[0], "worker_peak_mb": peaks[1]}
    print(json.dumps(found | {"workers": args.workers}))


if __name__ == "__main__":
  main()
