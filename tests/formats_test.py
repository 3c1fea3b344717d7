"""Workdirs of every released format are read for good: each is kept in tests/formats/ beside what it predicted."""

import json
import shutil
from pathlib import Path

import pytest

import lm
from lm import train
from lm.checkpoint import FORMAT
from tests.conftest import LABELS, TEXTS, make_run

FORMATS = Path(__file__).parent / "formats"
QUESTIONS = [*TEXTS[:3], "", "täxt " * 30]
KEPT = ("config.json", "manifest.json", "checkpoints")
pytestmark = pytest.mark.filterwarnings("ignore:1 of 5 texts")


def make_workdir(folder: Path, scratch: Path) -> None:
  """What a released format looks like: a classifier of one layer, and its predictions."""
  model = {
    "name": "bert-tiny",
    "num_layers": 1,
    "model_dim": 16,
    "num_heads": 2,
    "ffn_dim": 16,
    "max_len": 64,
    "init_stddev": 0.3,
  }
  data = {"name": "memory", "texts": TEXTS[:10], "text_labels": LABELS[:10]}
  settings = {
    "model": model,
    "data": data,
    "cache_dir": "",
    "total_steps": 20,
    "best_metric": "",
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
  }
  train.train(make_run("classify", **settings), scratch)
  folder.mkdir(parents=True)
  for name in KEPT:
    copy = shutil.copytree if (scratch / name).is_dir() else shutil.copyfile
    copy(scratch / name, folder / name)
  for path in (folder / "checkpoints").iterdir():
    if path.name != "20":
      shutil.rmtree(path)
  for path in folder.rglob("commit_success.txt"):  # Orbax writes the folder's name into it
    path.write_text("")
  predictions = lm.load(folder).predict(QUESTIONS)
  (folder / "predictions.json").write_text(json.dumps(predictions, indent=1) + "\n")


def test_the_current_format_is_kept(request, tmp_path, monkeypatch):
  folder = FORMATS / str(FORMAT)
  if request.config.getoption("--update-golden") and not folder.exists():  # a released one is never written anew
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_workdir(folder, tmp_path / "run")
  assert folder.is_dir(), "run it with --update-golden, once, when the format is final"
  assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 100_000


@pytest.mark.parametrize("folder", sorted(FORMATS.iterdir()) if FORMATS.is_dir() else [], ids=lambda folder: folder.name)
def test_every_format_predicts_what_it_predicted(folder):
  assert json.loads((folder / "manifest.json").read_text())["format"] == int(folder.name)
  found = lm.load(folder).predict(QUESTIONS)
  for row, expected in zip(found, json.loads((folder / "predictions.json").read_text()), strict=True):
    assert row["label"] == expected["label"]
    assert row["scores"] == pytest.approx(expected["scores"], abs=1e-4)
