"""The rules of the house that a program can see: sizes, names, docstrings, broad excepts."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 6
# What is allowed to be larger, and why.
EXEMPT = {
  ("lm/train.py", "train"): "the loop reads as one table of contents (80 lines)",
}
BANNED_NAMES = {"utils", "helpers", "common", "misc"}


def violations(path: str, source: str) -> list[str]:
  """Broken rules of one file."""
  found = [f"{path}: banned name"] if Path(path).stem in BANNED_NAMES else []
  module = ast.parse(source)
  if source.count("\n") > FILE_LINES:
    found.append(f"{path}: {source.count(chr(10))} lines, at most {FILE_LINES}")
  if not ast.get_docstring(module):
    found.append(f"{path}: no module docstring")
  if re.search(r"\b(TODO|FIXME)\b", source):
    found.append(f"{path}: unfinished")
  for node in ast.walk(module):
    if isinstance(node, ast.FunctionDef):
      found += _function(path, node)
    if isinstance(node, ast.ExceptHandler) and (
      node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException")
    ):
      found.append(f"{path}:{node.lineno}: catches everything")
  for node in module.body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_" and not ast.get_docstring(node):
      found.append(f"{path}:{node.lineno} {node.name}: public without docstring")
  return found


def _function(path: str, node: ast.FunctionDef) -> list[str]:
  found = []
  lines = (node.end_lineno or node.lineno) - node.lineno + 1
  limit = 80 if (path, node.name) in EXEMPT else FUNCTION_LINES
  if lines > limit:
    found.append(f"{path}:{node.lineno} {node.name}: {lines} lines, at most {limit}")
  args = node.args
  count = len([a for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg not in ("self", "cls")])
  # A test or a flax module's call may take more: fixtures and inputs are not settings.
  if count > PARAMETERS + (1 if node.name.startswith("_") else 0) and (path, node.name) not in EXEMPT:
    found.append(f"{path}:{node.lineno} {node.name}: {count} parameters, at most {PARAMETERS}")
  return found


def test_every_file_keeps_the_rules():
  folders = ("lm", "tools", "configs", "experiments")
  files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
  assert [line for p in files for line in violations(str(p.relative_to(ROOT)), p.read_text())] == []


@pytest.mark.parametrize(
  ("path", "source"),
  [
    ("lm/utils.py", '"""Doc."""'),
    ("lm/x.py", "x = 1"),
    ("lm/x.py", '"""Doc."""\n' + "x = 1\n" * 401),
    ("lm/x.py", '"""Doc."""\ndef f():\n  """Doc."""\n' + "  x = 1\n" * 60),
    ("lm/x.py", '"""Doc."""\ndef f(a, b, c, d, e, f, g):\n  """Doc."""'),
    ("lm/x.py", '"""Doc."""\ntry:\n  pass\nexcept Exception:\n  pass'),
    ("lm/x.py", '"""Doc."""\ndef f():\n  pass'),
    ("lm/x.py", '"""Doc."""\n# TO' + "DO later"),
  ],
)
def test_a_planted_violation_is_found(path, source):
  assert violations(path, source)
