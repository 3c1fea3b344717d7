"""How fast the data wing is: batches from a warm store on one core, tokenising, training a tokenizer. One dict of figures.

Figures are of this machine at this moment; another program on the same cores lowers them.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm import device, plug
from lm.config import ConfigError, Plug
from lm.data import store, tokenizer
from lm.data.loader import Loader, StreamData
from lm.shapes import INPUTS

TRAINED = 4 << 20  # characters of text that a tokenizer is trained on, at most


@dataclasses.dataclass(frozen=True)
class DataBench:
  """What is measured."""

  data: Plug = Plug("pydocs")
  task: Plug = Plug("mlm")
  tokenizer: str = ""  # as config.tokenizer; unset is the one that is trained
  vocab_size: int = 4096  # of the tokenizer that is trained
  seq_len: int = 512  # [tokens] per row
  batch_size: int = 256  # [rows]
  seconds: float = 5.0  # for which batches are read

  def __post_init__(self):
    if min(self.seq_len, self.batch_size) < 1 or self.seconds <= 0:
      raise ConfigError(f"seq_len={self.seq_len}, batch_size={self.batch_size}, seconds={self.seconds}: must be above 0")


def measure_data(bench: DataBench) -> dict[str, Any]:
  """Rates per second: of `batches` (real tokens, in one thread), `tokenize` (with all workers) and `train_tokenizer`.

  Returns:
    {"batch_tokens_per_sec": ..., "batch_tokens_per_cpu_sec": the same without the waits for other programs,
    "padding": share of a batch's positions, "tokenize_tokens_per_sec": ..., "tokenize_bytes_per_sec": ...,
    "store_open_seconds": of one that is there, "train_tokenizer_bytes_per_sec": ..., and what was measured}

  Raises:
    ConfigError: a name or an option that does not exist, a source without text.
  """
  source = plug.make("data", bench.data, split="train")
  task = plug.make("task", bench.task)
  with tempfile.TemporaryDirectory() as folder:
    model = Path(folder) / "tokenizer.model"
    trained = _measure_training(source, model, bench.vocab_size)
    tok = tokenizer.load(bench.tokenizer or str(model))
    num_bytes = sum(len(source[i]["text"].encode()) for i in range(len(source)))
    built, seconds = _timed(lambda: store.build(source, tok, task, Path(folder)))
    built, open_seconds = _timed(lambda: store.build(source, tok, task, Path(folder)))
    num_tokens = int(built.lengths.sum())
    loader = Loader([StreamData("bench", "bench", task, built, tok)], batch_size=bench.batch_size, seq_len=bench.seq_len)
    return {
      "data": bench.data.to_dict(),
      "task": bench.task.to_dict(),
      "seq_len": bench.seq_len,
      "batch_size": bench.batch_size,
      "cores": device.num_cores(),
      **_measure_batches(loader, bench.seconds),
      "tokenize_tokens_per_sec": round(num_tokens / seconds),
      "tokenize_bytes_per_sec": round(num_bytes / seconds),
      "store_open_seconds": round(open_seconds, 4),
      **trained,
    }


def _measure_batches(loader: Loader, seconds: float) -> dict[str, Any]:
  """Batches one after the other, as a training loop asks for them in a thread of its own."""
  loader.batch(0)  # plans the first epoch's order, maps the files
  real, positions, step, began, cpu_began = 0, 0, 0, time.perf_counter(), time.process_time()
  while (elapsed := time.perf_counter() - began) < seconds:
    segment_ids = loader.batch(step)[INPUTS]["segment_ids"]
    real += int(np.count_nonzero(segment_ids))
    positions += segment_ids.size
    step += 1
  cpu_seconds = time.process_time() - cpu_began
  rates = {"batch_tokens_per_sec": round(real / elapsed), "batch_tokens_per_cpu_sec": round(real / cpu_seconds)}
  return rates | {"padding": round(1 - real / positions, 5)}


def _measure_training(source: Any, model: Path, vocab_size: int) -> dict[str, Any]:
  texts, size = [], 0
  for i in range(len(source)):
    texts.append(source[i]["text"])
    size += len(texts[-1])
    if size >= TRAINED:
      break
  _, seconds = _timed(lambda: tokenizer.train(texts, str(model), vocab_size))
  return {"train_tokenizer_bytes_per_sec": round(sum(len(text.encode()) for text in texts) / seconds)}


def _timed(function: Any) -> tuple[Any, float]:
  began = time.perf_counter()
  return function(), time.perf_counter() - began
