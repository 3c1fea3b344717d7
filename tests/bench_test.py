"""The data bench measures what it says, and its command line is one line of JSON."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from lm.bench import data as bench
from lm.config import ConfigError, Plug
from lm.shapes import INPUTS
from tests.conftest import TEXTS

FIGURES = {
  "batch_tokens_per_sec",
  "batch_tokens_per_cpu_sec",
  "tokenize_tokens_per_sec",
  "tokenize_bytes_per_sec",
  "train_tokenizer_bytes_per_sec",
}


def test_figures_of_a_small_corpus():
  source = Plug("memory", (("texts", tuple(f"{text} {i}" for i in range(40) for text in TEXTS)),))
  found = bench.measure_data(bench.DataBench(source, vocab_size=300, seq_len=64, batch_size=4, seconds=0.05))
  assert found.keys() >= FIGURES
  assert all(found[name] > 0 for name in FIGURES)
  assert 0 <= found["padding"] < 0.5
  assert 0 < found["store_open_seconds"] < 1
  assert json.loads(json.dumps(found))["data"]["name"] == "memory"


def test_rates_are_real_tokens_over_seconds(monkeypatch):
  class Halves:
    def batch(self, step):
      return {INPUTS: {"segment_ids": np.repeat([[1, 0]], 50, axis=0)}}

  ticks = itertools.count()
  monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(ticks)))
  monkeypatch.setattr(bench.time, "process_time", lambda: next(ticks) / 2)
  found = bench._measure_batches(Halves(), 4.0)  # starts at ticks 0 and 1, batches at 2 and 3, the end at 4 and 5
  assert found == {"batch_tokens_per_sec": 100 // 4, "batch_tokens_per_cpu_sec": 100 // 2, "padding": 0.5}


def test_bad_settings_are_one_line():
  with pytest.raises(ConfigError, match=r"seconds=0\.0: must be above 0"):
    bench.DataBench(seconds=0.0)
  command = [sys.executable, "-m", "tools.bench", "data", "--data=pydoc"]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.returncode == 2
  assert ended.stderr.startswith("error: data 'pydoc': unknown; did you mean 'pydocs'? There are: ")
