"""Eight CPU devices that are one processor, strict numerics, and the tiny configs that tests share."""

import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

from lm import build, config

CACHE = Path(__file__).parent.parent / ".cache"
TEXTS = tuple(f"The {noun} {verb} number {i}.\n  It returns {i * 7} and {noun}s." for i, (noun, verb) in enumerate(
  [("module", "reads"), ("list", "sorts"), ("file", "opens with"), ("parser", "accepts"), ("queue", "holds")] * 8
))  # fmt: skip
LABELS = tuple(text.split()[1] for text in TEXTS)
SIZES = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64, "max_len": 128}
# Seconds that one test file may take, told at the end; more is a failure unless the file stands here with its reason.
BUDGET = 90.0


def pytest_addoption(parser):
  parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.json anew")


def pytest_configure(config):
  jax.config.update("jax_numpy_rank_promotion", "raise")
  jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_terminal_summary(terminalreporter):
  seconds: dict[str, float] = {}
  for reports in terminalreporter.stats.values():
    for report in reports:
      if hasattr(report, "duration"):
        file = report.nodeid.split("::")[0]
        seconds[file] = seconds.get(file, 0.0) + report.duration
  terminalreporter.section("seconds per file")
  for file, spent in sorted(seconds.items(), key=lambda item: -item[1])[:12]:
    terminalreporter.line(f"{spent:7.1f}  {file}{'   over its budget' if spent > BUDGET else ''}")


def make_config(kind="causal", **settings) -> config.Config:
  """A run of two layers on a few sentences with the bytes tokenizer."""
  preset = "gpt2-tiny" if kind == "causal" else "bert-tiny"
  data = {"name": "memory", "texts": TEXTS} | ({"text_labels": LABELS} if kind == "classify" else {})
  values = {
    "task": kind,
    "data": data,
    "model": {"name": preset, **SIZES},
    "tokenizer": "bytes",
    "seq_len": 64,
    "batch_size": 8,
    "total_steps": 10,
    "optimizer": {"name": "adamw", "learning_rate": 3e-3},
    "cache_dir": str(CACHE / "data"),
    "log_every": 1,
  }
  return config.from_dict(values | settings)


def make_run(kind="causal", devices=1, **settings):
  """The run of `make_config` on the first devices."""
  return build.make_run(make_config(kind, **settings), jax.devices()[:devices])


@pytest.fixture
def golden(request):
  """golden(name, values): compares with tests/golden/<name>.json to 1e-4, or writes it under --update-golden."""

  def check(name, values):
    path = Path(__file__).parent / "golden" / f"{name}.json"
    if request.config.getoption("--update-golden"):
      path.write_text(json.dumps([round(value, 6) for value in values], indent=1) + "\n")
    expected = json.loads(path.read_text())
    assert values == pytest.approx(expected, abs=1e-4), (
      f"the first steps' losses changed. If that was meant, write them anew with: pytest --update-golden -k {name}, and say why"
    )

  return check
