"""python -m experiments.pretrain.unigram --config=FILE [--config.SETTING=VALUE ...]: what tokens alone, without context, tell.

The loss of predicting each held-out token from the training text's counts (add one), and how often the commonest is right.
"""

import sys

import numpy as np

from lm import build, command, config
from lm.main import set_up_process


def main(argv: list[str]) -> int:
  """Prints one line per stream."""
  set_up_process()
  given = command.parse(argv)
  run = build.make_run(config.load(given.config, list(given.overrides)))
  for name in run.config.all_streams:
    counts, held_out = (_counts(run.load(name, split), run.tokenizer) for split in ("train", "validation"))
    loss = -float(held_out @ np.log((counts + 1) / (counts + 1).sum())) / held_out.sum()
    print(f"{name}: loss {loss:.3f}, accuracy {held_out[counts.argmax()] / held_out.sum():.3f}, {held_out.sum():,} tokens")
  return 0


def _counts(stream, tok) -> np.ndarray:
  """How often each token occurs, specials left out."""
  counts = np.bincount(stream.store.values("tokens"), minlength=tok.vocab_size)
  counts[list(tok.special_ids)] = 0
  return counts


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
