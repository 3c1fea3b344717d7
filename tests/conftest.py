"""Eight CPU devices that are one processor, strict numerics, and the tiny configs that tests share."""

import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test asks nobody
# The scheduler for concurrency lets two devices begin independent collectives in different orders, and wait for each other.
# Tests compile far more than they compute: without LLVM's optimisations they take 0.6 of the processor's time.
os.environ["XLA_FLAGS"] = " ".join([
  os.environ.get("XLA_FLAGS", ""),
  "--xla_force_host_platform_device_count=8",
  "--xla_cpu_enable_concurrency_optimized_scheduler=false",
  "--xla_backend_optimization_level=0",
])  # fmt: skip

import jax
import pytest

from lm import build, config, plug

CACHE = Path(__file__).parent.parent / ".cache"
TEXTS = tuple(f"The {noun} {verb} number {i}.\n  It returns {i * 7} and {noun}s." for i, (noun, verb) in enumerate(
  [("module", "reads"), ("list", "sorts"), ("file", "opens with"), ("parser", "accepts"), ("queue", "holds")] * 8
))  # fmt: skip
LABELS = tuple(text.split()[1] for text in TEXTS)
# Its third word is an act, of two words where a "with" follows; the one before it and the last one are things.
tags_of = lambda text: [
  "I-act" if word == "with" else {1: "B-thing", 2: "B-act", len(text.split()) - 1: "B-thing"}.get(i, "O")
  for i, word in enumerate(text.split())
]
TAGS = tuple(" ".join(tags_of(text)) for text in TEXTS)
SIZES = {"num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64, "max_len": 128}
# The first preset of every family file, and those for study.
_BY_FILE = {plug.describe("model", name): name for name in reversed(plug.names("model"))}
TINY = ["bert-tiny", "gpt2-tiny"]
EXPERTS = _BY_FILE[plug.describe("model", "mixtral-8x7b")]
FAMILIES = [*sorted(_BY_FILE.values()), *TINY]
KINDS = [*TINY, EXPERTS]  # an encoder, a decoder and a decoder of experts
# Seconds that one test file may take, both workers added up. They are told at the end.
BUDGET = 120.0
LONGER = {
  "tests/multihost/train_test.py": 300.0,  # several processes, each of which starts and compiles
  "tests/train_test.py": 300.0,  # whole runs: resume, every mesh, mixtures of tasks
  "tests/predictor_test.py": 180.0,  # runs of every kind, used on one device and on eight
  "tests/interop/adapter_test.py": 180.0,  # runs on top of runs
  "tests/parity/adapter_test.py": 300.0,  # a base and a run of every kind of head
  "tests/parity/adapter_methods_test.py": 300.0,  # a base and a run of every method
  "tests/parity/methods_test.py": 300.0,  # every method on two models, with gradients
  "tests/parity/export_test.py": 300.0,  # a run of every kind of head
}


def pytest_addoption(parser):
  parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.json anew")


def pytest_configure(config):
  jax.config.update("jax_numpy_rank_promotion", "raise")
  jax.config.update("jax_compilation_cache_dir", str(CACHE / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_terminal_summary(terminalreporter):
  terminalreporter.section("seconds per file")
  for file, spent in seconds_per_file(terminalreporter)[:12]:
    terminalreporter.line(f"{spent:7.1f}  {file}{'   over its budget' if over_budget(file, spent) else ''}")


def seconds_per_file(reporter) -> list[tuple[str, float]]:
  """Time in set-up, test and tear-down by file, the longest first."""
  seconds: dict[str, float] = {}
  for report in (report for reports in reporter.stats.values() for report in reports if hasattr(report, "duration")):
    file = report.nodeid.split("::")[0]
    seconds[file] = seconds.get(file, 0.0) + report.duration
  return sorted(seconds.items(), key=lambda item: -item[1])


def over_budget(file: str, seconds: float) -> bool:
  """Whether a test file took longer than it may."""
  return seconds > LONGER.get(file, BUDGET)


def shrunk(name: str, **changes) -> dict:
  """Options that make any preset tiny and leave it its mechanisms: {"name": ..., "num_layers": 2, ...}."""
  cfg = plug.preset(name)
  few = {"num_kv_heads": 2, "head_dim": 8, "window": 3, "num_experts": 4, "experts_per_token": 2, "rope_original_len": 32}
  return {"name": name, **SIZES, **{field: n for field, n in few.items() if getattr(cfg, field)}, **changes}


# Tasks that write symbols get bytes for them that no text of ours has.
OPTIONS = {
  "prompt_classify": {"pattern": "{text}={answer}", "verbalizers": ("module=m", "list=l", "file=f", "parser=pa", "queue=q")},
  "span_corruption": {"sentinel_ids": tuple(range(6, 14))},
  "ul2": {"sentinel_ids": tuple(range(6, 14)), "mode_ids": (19, 20, 21)},
  "fim": {"symbol_ids": (19, 20, 21)},
  "span_qa": {"max_query_length": 12},
  "rank": {"item_len": 10, "num_negatives": 2},
}


def asking(text: str) -> dict:
  """What does the second word do? The third; texts without one have no answer."""
  _, noun, verb, *_ = [*text.split(), "", "", ""]
  answers = [{"text": verb, "start": text.index(verb)}] if verb else []
  return {"text": f"{noun}?", "text_pair": text, "answers": answers}


def make_examples(kind, texts=TEXTS) -> list[dict]:
  """An example of a task of each text: labelled by its second word, or the number asked for and the noun said."""
  asked = lambda text: text.partition("\n")[0][-4:].strip() or "?"
  said = lambda text: text[4:10].strip() or "?"
  makers = {
    "classify": lambda text: {"text": text, "label": [*text.split(), "", ""][1]},
    "prompt_classify": lambda text: {"text": text, "label": [*text.split(), "", ""][1]},
    "regress": lambda text: {"text": text, "label": str(len([*text.split(), "", ""][1]) / 2)},
    "multilabel": lambda text: {"text": text, "label": [*text.split(), "", ""][1:3]},
    "tag": lambda text: {"text": text, "tokens": text.split(), "tags": tags_of(text)},
    "span_qa": asking,
    "dpo": lambda text: {"prompt": asked(text), "chosen": said(text), "rejected": said(text)[::-1]},
    "choose": lambda text: {"context": text, "choices": [said(text), "it", asked(text)], "label": len(asked(text)) % 3},
    "rank": lambda text: {"query": text, "positive": said(text)},
    "embed": lambda text: {"text": asked(text), "text_pair": said(text)},
    "sft": lambda text: {"prompt": asked(text), "response": said(text)},
  }
  catalogue = [{"item": item} for item in dict.fromkeys(map(said, texts))] if kind == "rank" else []
  return catalogue + [makers.get(kind, lambda text: {"text": text})(text) for text in texts]


def make_data(kind, texts=TEXTS) -> dict:
  """Options of a source of these examples."""
  examples = make_examples(kind, texts)
  if kind in ("classify", "prompt_classify", "regress"):
    return {"name": "memory", "texts": tuple(texts), "text_labels": tuple(example["label"] for example in examples)}
  if kind == "multilabel":
    labels = tuple("+".join(example["label"]) for example in examples)
    return {"name": "memory", "texts": tuple(texts), "text_labels": labels, "label_separator": "+"}
  if kind == "tag":
    return {"name": "memory", "texts": tuple(texts), "text_tags": tuple(" ".join(example["tags"]) for example in examples)}
  if examples[0].keys() == {"text"}:
    return {"name": "memory", "texts": tuple(texts)}
  return {"name": "memory", "rows": tuple(map(json.dumps, examples))}


def make_config(kind="causal", **settings) -> config.Config:
  """A run of two layers on a few sentences with the bytes tokenizer."""
  preset = "gpt2-tiny" if plug.find("task", kind).causal else "bert-tiny"
  values = {
    "task": {"name": kind, **OPTIONS.get(kind, {})},
    "data": make_data(kind),
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
def data_dir() -> Path:
  """The folder of public data sets that LM_DATA_DIR names; without it the test is skipped, under CI (CI=true) it fails."""
  if folder := os.environ.get("LM_DATA_DIR"):
    return Path(folder)
  if os.environ.get("CI") == "true":
    pytest.fail("LM_DATA_DIR is not set")
  pytest.skip("needs LM_DATA_DIR, a folder of public data sets")


@pytest.fixture
def golden(request):
  """golden(name, values, tolerance): compares with tests/golden/<name>.json, or writes it under --update-golden."""

  def check(name: str, values: list[float], tolerance: float = 1e-4):
    path = Path(__file__).parent / "golden" / f"{name}.json"
    update = f"pytest {request.node.nodeid.split('[')[0]} --update-golden"
    if request.config.getoption("--update-golden"):
      path.parent.mkdir(exist_ok=True)
      path.write_text(json.dumps([round(value, 6) for value in values], indent=1) + "\n")
    assert path.exists(), f"there are no golden values {path.name} yet; write them with: {update}"
    assert values == pytest.approx(json.loads(path.read_text()), abs=tolerance), (
      f"{name} changed. If that was meant, write the values anew with: {update}, and say in the commit why they changed"
    )

  return check
