"""python -m tools.train_tokenizer: a SentencePiece model on the documentation inside Python, or on any source of text.

--kind=char has a piece for each character of the text.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from lm import plug
from lm.config import ConfigError, Plug, parse_plug
from lm.data import tokenizer


def main() -> int:
  """Exit code: 0 trained or already there, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", default="pydocs", help="source, e.g. pydocs or 'text(path=\"a.txt\")'")
  parser.add_argument("--kind", default=tokenizer.KINDS[0], choices=tokenizer.KINDS)
  parser.add_argument("--vocab_size", type=int, help=f"{tokenizer.VOCAB_SIZE} where the kind takes one and this is left out")
  parser.add_argument("--extra_symbols", default="", help="pieces that no text gives, e.g. '<fim_prefix>,<extra_id_0..99>'")
  parser.add_argument("--output", default="runs/tokenizer.model")
  args = parser.parse_args()
  try:
    size = tokenizer.VOCAB_SIZE if args.vocab_size is None and args.kind != "char" else args.vocab_size
    options = {"kind": args.kind, "vocab_size": size, "extra_symbols": _symbols(args.extra_symbols)}
    return _train(parse_plug("data", args.data), options, Path(args.output))
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _symbols(text: str) -> list[str]:
  """'<a>,<b_0..2>' -> ['<a>', '<b_0>', '<b_1>', '<b_2>']."""
  names: list[str] = []
  for part in filter(None, text.split(",")):
    match = re.fullmatch(r"(.*?)(\d+)\.\.(\d+)(.*)", part)
    names += [f"{match[1]}{n}{match[4]}" for n in range(int(match[2]), int(match[3]) + 1)] if match else [part]
  return names


def _train(data: Plug, options: dict[str, Any], output: Path) -> int:
  if output.is_dir():
    raise ConfigError(f"--output={str(output)!r}: is a folder; expected a file such as runs/tokenizer.model")
  source = plug.make("data", data, split="train")
  note = output.with_suffix(".json")
  settings = {"data": data.to_dict(), **options, "fingerprint": source.fingerprint()}
  if output.is_file() and _holds(note, settings):
    print(f"{output}: there already, from the same text and settings")
    return 0
  if hasattr(source, "describe"):
    print(source.describe())
  note.unlink(missing_ok=True)  # it speaks for the model that is replaced now
  began = time.perf_counter()
  tokenizer.train((source[i]["text"] for i in range(len(source))), str(output), **options)
  seconds = time.perf_counter() - began
  note.write_text(json.dumps(settings, indent=2) + "\n")
  tok = tokenizer.load(str(output))
  print(f"{output}: {tok.vocab_size:,} pieces, {_bytes_per_token(tok, data, source)}, trained in {seconds:.1f} s")
  return 0


def _holds(note: Path, settings: dict[str, Any]) -> bool:
  try:
    return json.loads(note.read_text()) == settings
  except (OSError, ValueError):  # none there, or not whole: train again
    return False


def _bytes_per_token(tok: tokenizer.Tokenizer, data: Plug, train: Any) -> str:
  """On validation text; on the training text, and says so, where there is no other."""
  source, place = train, "train"
  try:
    held_out = plug.make("data", data, split="validation")
    if len(held_out):
      source, place = held_out, "validation"
  except ConfigError as error:
    print(f"no validation text: {error}")
  texts = [source[i]["text"] for i in range(len(source))]
  rate = sum(len(text.encode()) for text in texts) / sum(len(tok.encode(text)) for text in texts)
  return f"{rate:.2f} bytes per token on {place}"


if __name__ == "__main__":
  sys.exit(main())
