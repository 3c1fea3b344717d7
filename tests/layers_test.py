"""Who may import whom: the layers of the house, kept by reading every import, also those inside functions."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Package or module of lm -> its level. A file may import level 0 and lower levels; at its own level only what BESIDE says.
LEVELS = {
  "shapes": 0, "tree": 0, "metrics": 0, "config": 0, "plug": 0, "state": 0,
  "models": 1, "data": 1, "sharding": 1, "optim": 1, "checkpoint": 1, "track": 1, "step": 1, "report": 1,
  "tasks": 2, "peft": 2, "infer": 2,
  "program": 3, "run": 3,
  "evals": 4,
  "build": 5, "evaluate": 5, "train": 5,
  "main": 6, "sweep": 6,
}  # fmt: skip
# Imports within a level, beside those inside one package. Reason: a run holds its program; the loop evaluates.
BESIDE = {("run", "program"), ("train", "evaluate")}
NO_JAX = ("config", "plug", "shapes", "track", "report", "data")
OUTSIDE = ("configs", "experiments", "tools", "tests")


def violations(files: dict[str, str]) -> list[str]:
  """Broken rules of {path: source}."""
  found = []
  for path, source in files.items():
    parts = Path(path).with_suffix("").parts
    for name in imports(source):
      target = name.split(".")
      if parts[0] == "lm":
        found += _inside(path, parts[1], target)
      elif (
        parts[0] == "configs" and target[0] in ("lm", *OUTSIDE) and target[:2] != ["lm", "config"] and target[0] != "configs"
      ):
        found.append(f"{path}: configs import lm.config only, not {name}")
  return found


def imports(source: str) -> list[str]:
  """Every imported module's full name; `from lm import tree` counts as lm.tree."""
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names += [f"lm.{alias.name}" for alias in node.names] if node.module == "lm" else [node.module]
  return names


def _inside(path: str, part: str, target: list[str]) -> list[str]:
  if target[0] in OUTSIDE:
    return [f"{path}: nothing in lm imports {target[0]}"]
  if target[0] in ("jax", "flax", "optax") and part in NO_JAX:
    return [f"{path}: imports {target[0]}, but {part} is free of jax"]
  if target[0] != "lm" or len(target) < 2 or part == "__init__" or target[1] == part or target[1] not in LEVELS:
    return []
  mine, theirs = LEVELS[part], LEVELS[target[1]]
  if theirs > mine or (theirs == mine and mine > 0 and (part, target[1]) not in BESIDE):
    return [f"{path}: level {mine} imports lm.{target[1]} of level {theirs}"]
  return []


def test_every_import_points_down():
  files = {str(p.relative_to(ROOT)): p.read_text() for d in ("lm", "configs") for p in (ROOT / d).rglob("*.py")}
  assert len(files) > 40
  assert {Path(f).parts[1].removesuffix(".py") for f in files if f.startswith("lm")} - {"__init__"} == set(LEVELS)
  assert violations(files) == []


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("lm/models/x.py", "from lm.tasks import mlm"),
    ("lm/models/x.py", "def f():\n  import lm.sharding"),
    ("lm/tree.py", "from lm import build"),
    ("lm/data/x.py", "import jax.numpy as jnp"),
    ("lm/config.py", "from flax import linen"),
    ("lm/train.py", "from tools import report"),
    ("configs/x.py", "from lm import build"),
    ("lm/step.py", "from lm.optim import Adamw"),
  ],
)
def test_a_planted_import_is_found(path, source):
  assert violations({path: source})


def test_config_and_data_load_without_jax():
  code = "import sys, lm.config, lm.plug, lm.data.loader, lm.data.sources.pydocs; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
