"""The rules of the house that a program can see: sizes, names, docstrings, broad excepts, paths of one machine."""

import ast
import re
from pathlib import Path

import pytest

from lm import plug

ROOT = Path(__file__).parent.parent
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 6
# (file, function): (lines, parameters, why) for what may be larger.
EXEMPT = {
  ("lm/infer/generate.py", "_generate"): (FUNCTION_LINES, 7, "arrays and static values of a compiled function are separate"),
}
BANNED_NAMES = {"utils", "helpers", "common", "misc"}
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME)\b")
MACHINE_PATH = re.compile(r"""(?:^|[\s"'`=(:])/(?:home|root|mnt|work|workspace|Users)/\w""", re.MULTILINE)


def violations(path: str, source: str) -> list[str]:
  """Broken rules of one Python file. Tests need no docstrings: their names say the property."""
  module = ast.parse(source)
  found = [f"{path}: banned name"] if set(Path(path).with_suffix("").parts) & BANNED_NAMES else []
  if source.count("\n") > FILE_LINES:
    found.append(f"{path}: {source.count(chr(10))} lines, at most {FILE_LINES}")
  if not ast.get_docstring(module):
    found.append(f"{path}: no module docstring")
  if UNFINISHED.search(source):
    found.append(f"{path}: unfinished")
  for node in ast.walk(module):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      found += _function(path, node)
    if isinstance(node, ast.ExceptHandler) and _catches_everything(node):
      found.append(f"{path}:{node.lineno}: catches everything")
  for node in module.body if not path.startswith("tests/") else []:
    named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    if named and not node.name.startswith("_") and not ast.get_docstring(node):
      found.append(f"{path}:{node.lineno} {node.name}: public without docstring")
  return found + machine_paths(path, source)


def machine_paths(path: str, text: str) -> list[str]:
  """Lines of any text file that name a folder of somebody's machine."""
  return [f"{path}: {match.group().strip()}... is a path of one machine" for match in MACHINE_PATH.finditer(text)]


def _function(path: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
  max_lines, max_parameters, _ = EXEMPT.get((path, node.name), (FUNCTION_LINES, PARAMETERS, ""))
  lines = (node.end_lineno or node.lineno) - node.lineno + 1
  args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
  count = sum(arg.arg not in ("self", "cls") for arg in args)
  found = []
  if lines > max_lines:
    found.append(f"{path}:{node.lineno} {node.name}: {lines} lines, at most {max_lines}")
  if count > max_parameters:
    found.append(f"{path}:{node.lineno} {node.name}: {count} parameters, at most {max_parameters}")
  return found


def _catches_everything(node: ast.ExceptHandler) -> bool:
  caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
  return any(kind is None or ast.unparse(kind).split(".")[-1] in ("Exception", "BaseException") for kind in caught)


def test_every_file_keeps_the_rules():
  folders = ("lm", "tools", "configs", "experiments", "tests")
  files = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
  assert [line for p in files for line in violations(str(p.relative_to(ROOT)), p.read_text())] == []


@pytest.mark.parametrize("kind", ["task", "peft", "quantizer", "data", "filter", "evaluator", "optimizer", "model"])
def test_every_option_has_a_comment_that_says_what_it_means(kind):
  bare = [
    f"{name}.{option}"
    for name in plug.names(kind)
    for option in plug.fields(kind, name)
    if not plug.comments(plug.find(kind, name)).get(option)
  ]
  assert not bare


def test_no_other_file_names_a_machine():
  files = [
    *ROOT.glob("*.md"),
    *ROOT.glob("*.cfg"),
    *ROOT.glob("*.toml"),
    ROOT / "Makefile",
    ROOT / ".ci/run",
    *ROOT.glob("locks/*"),
  ]
  assert [line for p in files for line in machine_paths(p.name, p.read_text())] == []


@pytest.mark.parametrize(
  ("path", "source", "complaint"),
  [
    ("lm/utils.py", "", "banned name"),
    ("lm/common/x.py", "", "banned name"),
    ("lm/x.py", "x = 1\n" * 401, "at most 400"),
    ("lm/x.py", "def _f():\n" + "  x = 1\n" * 60, "at most 60"),
    ("lm/x.py", "class _A:\n  def f(self, a, b, c, d, e, f, *, g):\n    pass", "at most 6"),
    ("lm/x.py", "try:\n  pass\nexcept Exception:\n  pass", "catches everything"),
    ("lm/x.py", "try:\n  pass\nexcept:\n  pass", "catches everything"),
    ("lm/x.py", "try:\n  pass\nexcept (OSError, Exception):\n  pass", "catches everything"),
    ("lm/x.py", "def f():\n  pass", "public without docstring"),
    ("lm/x.py", "class A:\n  pass", "public without docstring"),
    ("lm/x.py", "# TO" + "DO later", "unfinished"),
    ("lm/x.py", "ROOT = '/ho" + "me/somebody'", "path of one machine"),
  ],
)
def test_a_planted_violation_is_found(path, source, complaint):
  found = violations(path, f'"""Doc."""\n{source}')
  assert len(found) == 1
  assert complaint in found[0]


def test_a_file_without_docstring_is_found():
  assert violations("lm/x.py", "x = 1") == ["lm/x.py: no module docstring"]


def test_a_function_within_its_caps_is_not_found():
  assert violations("lm/x.py", '"""Doc."""\ndef f(a, b, c, d, e, f):\n  """Doc."""\n' + "  x = 1\n" * 58) == []
