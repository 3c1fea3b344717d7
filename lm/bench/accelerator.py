"""One accelerator at the sizes it is bought for: steps of training and fine-tuning, and tokens written one by one.

It needs jax, flax, optax, orbax and this tree: texts are of random letters, read as bytes, and weights are random.
"""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import build, chips, config
from lm.bench import step, use
from lm.config import ConfigError
from lm.run import Run

LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", np.uint8)
ROUNDS, STEPS = 5, 4


@dataclasses.dataclass(frozen=True)
class Case:
  """settings: of a config, without data. unit: of the figure that `floor` and `aim`, None where a peer decides, are for.

  prompts: how many go on at a time, 0 of a case that trains. new_tokens: behind each.
  """

  settings: Mapping[str, Any]
  unit: str = "mfu"
  floor: float | None = None
  aim: float | None = None
  prompts: int = 0
  new_tokens: int = 256


# Floors and aims are of one H200, in bfloat16.
_GPT2 = {"name": "gpt2", "vocab_size": 50304}
_LLAMA = {"name": "llama-2-7b", "num_layers": 24, "model_dim": 2048, "num_heads": 16, "ffn_dim": 5504}  # 1.3 B
_LORA = {"name": "lora", "rank": 32, "alpha": 32.0, "targets": ".*"}
_WRITES = {"model": "qwen2.5-1.5b", "task": "causal", "seq_len": 256, "batch_size": 1}
CASES: dict[str, Case] = {
  "gpt2_124m": Case({"model": _GPT2, "task": "causal", "seq_len": 1024, "batch_size": 32}, floor=0.4, aim=0.5),
  "bert_base": Case({"model": "bert-base-uncased", "task": "mlm", "seq_len": 512, "batch_size": 64}, floor=0.4, aim=0.5),
  "llama_1.3b": Case(
    {"model": _LLAMA, "task": "causal", "seq_len": 2048, "batch_size": 8, "remat": "dots"}, floor=0.45, aim=0.55
  ),
  "lora_3b": Case(
    {"model": "llama-3.2-3b", "task": "causal", "peft": _LORA, "seq_len": 2048, "batch_size": 8, "remat": "dots"},
    unit="tokens_per_sec",
  ),
  "write_1.5b_1": Case(_WRITES, "bandwidth", 0.65, 0.8, prompts=1),
  "write_1.5b_64": Case(_WRITES, "bandwidth", 0.65, 0.8, prompts=64),
}


def measure(cases: Mapping[str, Case], rounds: int = ROUNDS, steps: int = STEPS) -> dict[str, dict[str, Any]]:
  """By case what `step.measure` or `use.measure_generation` gives, with its floor and aim; of one that fails the error.

  Of written tokens `bandwidth` is the share of the device's that reads each weight once for every token, and what keys and
  values there are on average; None where the chip's is not known.
  """
  found: dict[str, dict[str, Any]] = {}
  with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "train.txt").write_bytes(_texts())
    shared = {"tokenizer": "bytes", "data": {"name": "text", "path": "train.txt", "validation": "train.txt"}}
    shared |= {"data_dir": folder, "cache_dir": folder, "optimizer": "adamw"}
    for name, case in cases.items():
      try:
        cfg = config.from_dict({**shared, **case.settings})
        got = _measure(case, build.make_run(cfg, jax.devices()[:1]), rounds, steps)
      except (ConfigError, ValueError, jax.errors.JaxRuntimeError) as error:
        got = {"error": str(error).partition("\n")[0]}
      found[name] = {"unit": case.unit, "floor": case.floor, "aim": case.aim, **got}
  return found


def _measure(case: Case, run: Run, rounds: int, steps: int) -> dict[str, Any]:
  if not case.prompts:
    return step.measure(run, rounds, steps, with_peer=False)
  found = use.measure_generation(run, rounds, case.new_tokens, case.prompts, with_peer=False)
  chip = chips.find(run.mesh.devices.flat[0].device_kind)
  per_sec = found["tokens_per_sec"] / case.prompts * _bytes_read(case, run)
  fastest = chip.hbm_bytes_per_sec if chip else 0.0
  return found | {"bytes_per_sec": per_sec, "bandwidth": per_sec / fastest if fastest else None}


def _bytes_read(case: Case, run: Run) -> float:
  """For one token of every prompt: the weights, and the keys and values of the half that is written on average."""
  model = run.program.spec.model
  size = np.dtype(model.dtype).itemsize
  cfg, length = model.cfg, run.config.seq_len // 2 + case.new_tokens / 2
  return size * (run.program.num_params["total"] + 2 * cfg.num_layers * cfg.kv_heads * cfg.channels * length * case.prompts)


def _texts() -> bytes:
  """About 1 MB of lines of 100 to 2,000 letters: rows are packed with several of them, or cut from one."""
  rng = np.random.default_rng(0)
  return b"\n".join(rng.choice(LETTERS, size).tobytes() for size in rng.integers(100, 2000, 1000))
