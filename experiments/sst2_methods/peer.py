"""The rows of torch, transformers and peft for the table of methods: the same batches, rates and steps, one run in a process.

python -m experiments.sst2_methods.peer --method=lora --seed=0 --data_dir=DATA --runs=runs/sst2

It writes runs/sst2/torch-<method>-s<seed>/summary.json, as a run of ours has it, for experiments.collect. Needs `pip install -e
'.[parity]'`. peft has no adapters between layers.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from lm import build, config, device, metrics, peer
from lm.files import write_json
from lm.main import set_up_process
from lm.train import peak_memory

METHODS = ("full", "head", "bitfit", "lora", "dora", "adalora", "ia3", "prefix", "prompt")


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--method", choices=METHODS, required=True)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--runs", type=Path, required=True)
  args = parser.parse_args()
  set_up_process()
  began = time.perf_counter()
  try:
    file = Path(__file__).parent / "sst2.py"
    cfg = config.load(f"{file}:{args.method}", {"seed": f"{args.seed}", "data_dir": args.data_dir})
    run = build.make_run(cfg)
    found = peer.train(run, _say)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  labels = {split: run.load("classify", split).store.values("label") for split in ("train", "validation")}
  summary = {
    "status": "finished",
    "step": run.total_steps,
    "metrics": {
      "eval/validation/accuracy": found["accuracy"],
      "step0/eval/validation/accuracy": found["step0_accuracy"],
      "baseline/validation_majority_accuracy": metrics.accuracy(labels["validation"], np.bincount(labels["train"]).argmax()),
    },
    "params": {"total": run.program.num_params["total"], "trainable": found["trainable"]},
    "peak_memory_bytes": peak_memory(),
    "time": {"train": found["seconds"], "rest": round(time.perf_counter() - began - found["seconds"], 1)},
  }
  write_json(args.runs / f"torch-{args.method}-s{args.seed}" / "summary.json", summary)
  print(summary)
  return 0


def _say(step: int, loss: float) -> None:
  if step % 50 == 0:
    print(f"step {step} loss {loss:.4f}", file=sys.stderr)


if __name__ == "__main__":
  device.restart_with_huge_pages()  # as runs of ours have it; torch is as fast without
  sys.exit(main())
