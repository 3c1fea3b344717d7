"""The wheel holds lm and nothing else, all of it, and works from any folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.formats_test import FORMATS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
  for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copyfile(ROOT / name, source / name)
  for name in ("lm", "configs", "tools", "tests"):  # what stands beside lm must not get in
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  pip("wheel", "--no-build-isolation", "--wheel-dir", out, source)
  return next(out.glob("*.whl"))


def pip(command, *arguments):
  quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
  subprocess.run([sys.executable, "-m", "pip", command, *quiet, *map(str, arguments)], check=True)


def test_it_holds_every_file_of_lm_and_no_other(wheel):
  names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
  ours = [
    str(path.relative_to(ROOT)) for path in (ROOT / "lm").rglob("*") if path.is_file() and "__pycache__" not in path.parts
  ]
  assert sorted(names) == sorted(ours)


def test_it_predicts_in_another_folder(wheel, tmp_path):
  pip("install", "--target", tmp_path / "site", wheel)
  folder = sorted(FORMATS.iterdir())[-1].absolute()
  code = (
    "import json, sys, lm; found = lm.load(sys.argv[1]).predict(['', 'The list sorts.']);"
    "print(json.dumps({'file': lm.__file__, 'labels': [row['label'] for row in found]}))"
  )
  env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
  run = subprocess.run([sys.executable, "-c", code, folder], cwd=tmp_path, env=env, check=True, capture_output=True, text=True)
  found = json.loads(run.stdout)
  assert Path(found["file"]).is_relative_to(tmp_path / "site")
  assert len(found["labels"]) == 2
