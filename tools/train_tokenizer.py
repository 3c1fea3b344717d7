"""python -m tools.train_tokenizer: a SentencePiece unigram model on the documentation inside Python."""

import argparse
import json
import sys
import time
from pathlib import Path

from lm import plug
from lm.config import Plug, parse_plug
from lm.data import tokenizer


def main() -> int:
  """Exit code: 0 trained or already there, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", default="pydocs", help="source, e.g. pydocs or 'text(path=\"a.txt\")'")
  parser.add_argument("--vocab_size", type=int, default=4096)
  parser.add_argument("--output", default="runs/tokenizer.model")
  args = parser.parse_args()
  try:
    return _train(parse_plug("data", args.data), args.vocab_size, Path(args.output))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _train(data: Plug, vocab_size: int, output: Path) -> int:
  source = plug.make("data", data, split="train")
  note = output.with_suffix(".json")
  settings = {"data": data.to_dict(), "vocab_size": vocab_size, "fingerprint": source.fingerprint()}
  if output.is_file() and note.is_file() and json.loads(note.read_text()) == settings:
    print(f"{output}: there already, from the same text and settings")
    return 0
  if hasattr(source, "describe"):
    print(source.describe())
  began = time.perf_counter()
  tokenizer.train((source[i]["text"] for i in range(len(source))), str(output), vocab_size)
  tok = tokenizer.load(str(output))
  texts = [source[i]["text"] for i in range(min(len(source), 1000))]
  rate = sum(len(text.encode()) for text in texts) / sum(len(tok.encode(text)) for text in texts)
  note.write_text(json.dumps(settings, indent=2) + "\n")
  print(f"{output}: {tok.vocab_size} pieces, {rate:.2f} bytes per token, {time.perf_counter() - began:.1f} s")
  return 0


if __name__ == "__main__":
  sys.exit(main())
