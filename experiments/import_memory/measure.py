"""python -m experiments.import_memory.measure [--layers=8] [--dtype=float32]: the README beside it says what for.

Writes a random checkpoint of Llama's shape into a temporary folder, imports and loads it in processes of their own, and
prints the most host memory that each of them held.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

MODEL_DIM, FFN_DIM, VOCAB = 2048, 5632, 32_000
CONFIG = {
  "model_type": "llama", "hidden_size": MODEL_DIM, "intermediate_size": FFN_DIM, "num_attention_heads": 16,
  "max_position_embeddings": 2048, "vocab_size": VOCAB, "tie_word_embeddings": False,
}  # fmt: skip
JAX_ALONE = "import jax; jax.devices()"
LOAD = "import sys; from lm.interop import load_pretrained; load_pretrained(sys.argv[1])"

# Runs a command; prints its exit code and the most that it held [KiB].
SMALL = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


class Cost(NamedTuple):
  """What a process took: the most resident memory [bytes], and its wall time [s]."""

  peak: int
  seconds: float


def write_checkpoint(folder: Path, num_layers: int, dtype: str) -> int:
  """A random checkpoint with a shard per layer and one for the two tables. Returns the bytes of its tensors."""
  from safetensors.numpy import save_file

  from lm.interop import tensors
  from lm.interop.weights import TYPES

  rng, weight_map, num_bytes = np.random.default_rng(0), {}, 0
  tables = {
    "model.embed_tokens.weight": (VOCAB, MODEL_DIM),
    "lm_head.weight": (VOCAB, MODEL_DIM),
    "model.norm.weight": (MODEL_DIM,),
  }
  for i, shapes in enumerate([*map(_layer, range(num_layers)), tables]):
    values = {name: rng.standard_normal(shape, np.float32).astype(TYPES[dtype]) for name, shape in shapes.items()}
    file = f"model-{i + 1:05}-of-{num_layers + 1:05}.safetensors"
    save_file(values, folder / file)
    weight_map |= dict.fromkeys(values, file)
    num_bytes += sum(value.nbytes for value in values.values())
  (folder / tensors.INDEX).write_text(json.dumps({"metadata": {"total_size": num_bytes}, "weight_map": weight_map}))
  (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": num_layers}))
  return num_bytes


def cost(*arguments: str) -> Cost:
  """Of `python *arguments`, started by a small process: Linux counts what a parent held when it started the child.

  Raises:
    RuntimeError: the process failed.
  """
  began = time.monotonic()
  command = [sys.executable, "-c", SMALL, sys.executable, *arguments]
  said = subprocess.check_output(command, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  status, peak_kib = map(int, said.split())
  if status:
    raise RuntimeError(f"python {' '.join(arguments)} failed")
  return Cost(peak_kib * 1024, time.monotonic() - began)


def _layer(i: int) -> dict[str, tuple[int, ...]]:
  attention = {f"self_attn.{part}_proj": (MODEL_DIM, MODEL_DIM) for part in "qkvo"}
  ffn = {"mlp.gate_proj": (FFN_DIM, MODEL_DIM), "mlp.up_proj": (FFN_DIM, MODEL_DIM), "mlp.down_proj": (MODEL_DIM, FFN_DIM)}
  norms = {"input_layernorm": (MODEL_DIM,), "post_attention_layernorm": (MODEL_DIM,)}
  return {f"model.layers.{i}.{name}.weight": shape for name, shape in (attention | ffn | norms).items()}


def main() -> None:
  """Writes, measures, prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--layers", type=int, default=8)
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder, out = Path(temporary) / "from", Path(temporary) / "to"
    folder.mkdir()
    # In a process of its own, so that this one stays small.
    code = "import sys; from pathlib import Path; from experiments.import_memory.measure import write_checkpoint;"
    code += "print(write_checkpoint(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))"
    written = subprocess.check_output([sys.executable, "-c", code, str(folder), str(args.layers), args.dtype], text=True)
    costs = {
      "import jax": cost("-c", JAX_ALONE),
      "tools.convert import": cost("-m", "tools.convert", "import", "--from", str(folder), "--to", str(out)),
      "load_pretrained": cost("-c", LOAD, str(folder)),
    }
  print(f"N, the file's tensors in {args.dtype}: {int(written) / 1e9:.2f} GB")
  for name, found in costs.items():
    print(f"{name}: {found.peak / 1e9:.2f} GB at most, N {(found.peak - int(written)) / 1e9:+.2f} GB, {found.seconds:.0f} s")


if __name__ == "__main__":
  main()
