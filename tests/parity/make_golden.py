"""Writes tests/golden/parity anew: small models and what transformers computes with them, for tests that have no torch.

python -m tests.parity.make_golden
"""

import shutil
from pathlib import Path

import numpy as np

from tests.parity import oracle
from tests.parity.agreement import pad, random_tokens
from tests.parity.families import GOLDEN, WINDOW, WRITERS

GOLDEN_DIR = Path(__file__).parent.parent / "golden" / "parity"
KEPT = ("config.json", "model.safetensors", "expected.npz")
MAX_BYTES = 60_000


def arrays(name: str, model) -> dict[str, np.ndarray]:
  """Inputs and outputs: a batch padded on the right, its first row past the window, and 24 greedy tokens of decoders."""
  rng = np.random.default_rng(0)
  rows = [random_tokens(rng, n, vocab=model.config.vocab_size) for n in (2 * WINDOW, WINDOW + 1)]
  tokens_BT, mask_BT, _ = pad(rows)
  found = {"tokens": tokens_BT, "attention_mask": mask_BT, **oracle.outputs(model, tokens_BT, mask_BT)}
  if name in WRITERS:
    prompts, added = oracle.clear_greedy(model, (3, WINDOW + 3), 24)
    found |= {"prompts": np.concatenate(prompts), "prompt_lengths": np.array(list(map(len, prompts))), "added": np.array(added)}
  return found


def write(name: str, directory: Path) -> int:
  """Makes one variant -> bytes written."""
  shutil.rmtree(directory, ignore_errors=True)
  oracle.make(name, directory, **GOLDEN[name])
  np.savez_compressed(directory / "expected.npz", **arrays(name, oracle.load(name, directory)))
  for path in directory.iterdir():
    if path.name not in KEPT:
      path.unlink()
  return sum(path.stat().st_size for path in directory.iterdir())


def main() -> None:
  """Writes all of them, and tells their sizes."""
  for name in GOLDEN:
    size = write(name, GOLDEN_DIR / name)
    print(f"{size:7,d} bytes  {name}")
    assert size < MAX_BYTES, f"{name} has {size:,} bytes, at most {MAX_BYTES:,}"


if __name__ == "__main__":
  main()
