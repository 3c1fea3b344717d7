"""The rows of torch, transformers and peft for the table of methods: the same batches, rates and steps, one run in a process.

python -m experiments.sst2_methods.peer --method=lora --seed=0 --data_dir=DATA --runs=runs/sst2

It writes runs/sst2/torch-<method>-s<seed>/summary.json, as a run of ours has it, for experiments.collect. Needs `pip install -e
'.[parity]'`. peft has no adapters between layers.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm import build, config, device, metrics
from lm.bench import hf, peer
from lm.files import write_json
from lm.main import set_up_process
from lm.run import Run

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
    found = train(run)
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
    "peak_memory_bytes": device.peak_memory(),
    "time": {"train": found["seconds"], "rest": round(time.perf_counter() - began - found["seconds"], 1)},
  }
  write_json(args.runs / f"torch-{args.method}-s{args.seed}" / "summary.json", summary)
  print(summary)
  return 0


def train(run: Run) -> dict[str, Any]:
  """Fine-tunes the peer over the run's batches to its last step; {"accuracy" of validation before and after, "seconds"}."""
  with tempfile.TemporaryDirectory() as folder:
    trainer = hf.Trainer(peer.make_recipe(run, Path(folder)))
  before, spent = peer.accuracy(trainer, run, "validation"), 0.0
  for step in range(run.total_steps):
    rows = peer.make_rows(run, run.loader.batch(step))
    began = time.perf_counter()
    loss = trainer.step(rows, float(run.schedule(step)))
    spent += time.perf_counter() - began
    if (step + 1) % 50 == 0:
      print(f"step {step + 1} loss {loss:.4f}", file=sys.stderr)
  accuracy = peer.accuracy(trainer, run, "validation")
  return {"step0_accuracy": before, "accuracy": accuracy, "seconds": round(spent, 1), "trainable": trainer.num_trainable}


if __name__ == "__main__":
  device.restart_with_huge_pages()  # as runs of ours have it; torch is as fast without
  sys.exit(main())
