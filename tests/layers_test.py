"""Who may import whom: the layers of the house, kept by reading every import, also those inside functions."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from lm import plug
from lm.data import tokenizer

ROOT = Path(__file__).parent.parent
# Package or module of lm -> its level. A file may import level 0 and lower levels, and its own package.
LEVELS = {
  "shapes": 0, "layout": 0, "tree": 0, "metrics": 0, "config": 0, "duration": 0, "command": 0, "device": 0, "chips": 0,
  "cluster": 0, "roll": 0, "files": 0, "hub": 0, "plug": 0, "state": 0, "seeds": 0,
  "models": 1, "data": 1, "sharding": 1, "optim": 1, "checkpoint": 1, "track": 1, "step": 1, "report": 1, "regularizers": 1,
  "quantizers": 1,
  "tasks": 2, "peft": 2, "infer": 2, "interop": 2,
  "program": 3, "run": 3, "engine": 3,
  "evals": 4, "record": 4, "preflight": 4,
  "saved": 5,
  "build": 6, "evaluate": 6, "train": 6, "pretrained": 6,
  "adapters": 7,
  "predictor": 8, "predict": 8, "show": 8, "sweep": 8, "convert": 8, "prepare": 8, "bench": 8,
  "main": 9,
}  # fmt: skip
# Packages that see only these parts of the levels below them, beside level 0.
NARROW = {
  "tasks": ("data", "models.head_spec"),
  "peft": ("models",),
  "infer": ("models", "data"),
  "interop": ("models", "data"),
}
# What the layers would forbid, and why it is right all the same.
EXEMPT = {
  ("tasks", "models.model"): "an objective is of a model, and `Forward` is what tasks get of it",
  ("tasks", "regularizers.regularizer"): "an objective gives a regularizer the passes that it asks for",
  ("tasks", "models.transformer"): "`Forward` keeps what the backbone gave",
  ("run", "program"): "a run holds its compiled program",
  ("train", "evaluate"): "the loop evaluates",
  ("predict", "predictor"): "the rows of a file are predicted by a Predictor",
  (
    "interop",
    "pretrained",
  ): "lm.interop.load_pretrained, which reads workdirs too, imported when it is asked for and not before",
  ("__init__", "predictor"): "lm.load, imported when it is asked for and not before",
}
# These load in data workers and in tools without an accelerator; what is in JAX imports jax.
NO_JAX = ("config", "duration", "roll", "files", "command", "device", "chips", "plug", "shapes", "track", "report", "data")
JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
# What stands outside lm may import this and no other part of the repository.
OUTSIDE = {
  "configs": ("configs", "lm.config"),
  "tools": ("tools", "lm"),
  "experiments": ("experiments", "configs", "lm"),
  "tests": ("tests", "experiments", "tools", "configs", "lm"),
}


def violations(files: dict[str, str]) -> list[str]:
  """Broken rules of {path: source}."""
  found = []
  for path, source in files.items():
    folder, part = Path(path).with_suffix("").parts[:2]
    for name in imports(source):
      wrong = _inside(part, name) if folder == "lm" else _outside(folder, name)
      if wrong:
        found.append(f"{path}: {wrong}")
  return found


def imports(source: str) -> list[str]:
  """Full name of everything imported: `from lm.models import heads` is lm.models.heads, `from . import x` is .x."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names += ["." * node.level + ".".join(filter(None, [node.module, alias.name])) for alias in node.names]
  return names


def _inside(part: str, name: str) -> str:
  """What is wrong with an import in lm/<part>, or ''."""
  if name.startswith("."):
    return f"relative import of {name}"
  root, _, rest = name.partition(".")
  if root in OUTSIDE:
    return f"nothing in lm imports {root}"
  if root in JAX and part in NO_JAX:
    return f"imports {root}, but {part} is free of jax"
  theirs = rest.split(".")[0]
  if root != "lm" or theirs == part or theirs not in LEVELS:
    return ""
  if any(part == who and _within(rest, (what,)) for who, what in EXEMPT):
    return ""
  level = LEVELS.get(part, 0)  # lm/__init__.py is loaded by everyone
  if LEVELS[theirs] > level or LEVELS[theirs] == level > 0:
    return f"level {level} imports lm.{theirs} of level {LEVELS[theirs]}"
  if LEVELS[theirs] > 0 and part in NARROW and not _within(rest, NARROW[part]):
    return f"{part} imports lm.{rest}, but sees only {', '.join(NARROW[part])}"
  return ""


def _outside(folder: str, name: str) -> str:
  """What is wrong with an import in a folder beside lm, or ''."""
  root = name.split(".")[0]
  if name.startswith("."):
    return f"relative import of {name}"
  if root in ("lm", *OUTSIDE) and not _within(name, OUTSIDE[folder]):
    return f"{folder} import {' and '.join(OUTSIDE[folder])} only, not {name}"
  if folder == "configs" and root in JAX:
    return f"imports {root}, but a config loads without jax"
  return ""


def _within(name: str, packages: tuple[str, ...]) -> bool:
  """Whether a dotted name is one of the packages or inside one: models.heads.Lm is within models.heads."""
  return any(f"{name}.".startswith(f"{package}.") for package in packages)


def test_every_import_points_down():
  files = {str(p.relative_to(ROOT)): p.read_text() for d in ("lm", *OUTSIDE) for p in (ROOT / d).rglob("*.py")}
  assert {Path(f).parts[1].removesuffix(".py") for f in files if f.startswith("lm")} - {"__init__"} == set(LEVELS)
  assert violations(files) == []


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("lm/tree.py", "from lm import build"),
    ("lm/__init__.py", "from lm import train"),
    ("lm/models/x.py", "from lm.tasks import mlm"),
    ("lm/models/x.py", "def f():\n  import lm.sharding"),
    ("lm/models/x.py", "from ..tasks import mlm"),
    ("lm/step.py", "from lm.optim.adamw import Adamw"),
    ("lm/tasks/x.py", "from lm.models import attention"),
    ("lm/tasks/x.py", "from lm import models"),
    ("lm/peft/x.py", "from lm.data import loader"),
    ("lm/infer/x.py", "from lm import checkpoint"),
    ("lm/run.py", "from lm.evals import evaluator"),
    ("lm/train.py", "from lm import build"),
    ("lm/data/x.py", "import jax.numpy as jnp"),
    ("lm/config.py", "from flax import linen"),
    ("lm/train.py", "from tools import report"),
    ("configs/x.py", "from lm import build"),
    ("configs/x.py", "import jax"),
    ("tools/x.py", "from configs import tiny"),
    ("experiments/a/x.py", "from tests import conftest"),
  ],
)
def test_a_planted_import_is_found(path, source):
  assert violations({path: source})


def test_allowed_imports_are_not_found():
  assert not violations(
    {"lm/tasks/x.py": "import jax\nfrom lm import tree\nfrom lm.models.head_spec import HeadSpec\nimport lm.data.plan"}
  )
  assert not violations({"configs/x.py": "import ml_collections\nfrom lm import config\nfrom configs import tiny"})


def test_exemptions_are_needed():
  for part, target in EXEMPT:
    sources = [
      p.read_text() for p in (ROOT / "lm").rglob("*.py") if p.relative_to(ROOT / "lm").with_suffix("").parts[0] == part
    ]
    assert any(_within(name, (f"lm.{target}",)) for source in sources for name in imports(source)), (part, target)


def test_config_and_data_load_without_jax():
  files = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "lm").rglob("*.py")]
  modules = [".".join(f.parts) for f in files if len(f.parts) > 1 and f.parts[1] in NO_JAX]
  assert len(modules) >= len(NO_JAX)
  code = f"import sys, {', '.join(modules)}; assert not {{'jax', 'jaxlib', 'tensorflow'}} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_worker_that_tokenises_loads_no_jax():
  pickled = [pickle.dumps((tokenizer.load("bytes"), plug.make("task", plug.Plug(name)))) for name in plug.names("task")]
  code = f"""
import sys
from lm.data import encode
for pickled in {pickled!r}:
  encode._start_worker(pickled)
assert not {set(JAX)!r} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
