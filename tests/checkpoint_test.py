"""Which checkpoint is read: the last, the best that the run recorded, or a step; and formats of the future."""

import json

import pytest

from lm import checkpoint, record
from lm.checkpoint import choose
from lm.config import ConfigError


@pytest.fixture
def folder(tmp_path):
  for step in (20, 100, 3):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  (tmp_path / "checkpoints" / "110.tmp").mkdir()
  return tmp_path / "checkpoints"


def test_last_best_and_a_step(folder):
  assert choose(folder) == choose(folder, "last") == 100
  assert choose(folder, 20) == choose(folder, "20") == 20
  (folder / "best.json").write_text(json.dumps({"step": 3}))
  assert choose(folder, "best") == 3


@pytest.mark.parametrize(
  ("which", "words"), [("best", "recorded none"), (7, "no such step"), ("newest", "accepted are 'last'")]
)
def test_what_is_not_there_lists_the_steps(which, words, folder):
  with pytest.raises(ConfigError, match=f"{words}.* has the steps 3, 20, 100"):
    choose(folder, which)


def test_a_best_whose_save_never_ended_is_none(folder):
  (folder / "best.json").write_text(json.dumps({"step": 110}))
  with pytest.raises(ConfigError, match="recorded none"):
    choose(folder, "best")


def test_no_checkpoint_at_all(tmp_path):
  with pytest.raises(ConfigError, match="there is no checkpoint"):
    choose(tmp_path)


def test_a_later_format_is_one_line(tmp_path):
  (tmp_path / "config.json").write_text('{"a setting of the future": 1}')
  (tmp_path / "manifest.json").write_text(json.dumps({"format": checkpoint.FORMAT + 1}))
  with pytest.raises(ConfigError, match=f"has format {checkpoint.FORMAT + 1}.*reads formats up to {checkpoint.FORMAT}"):
    record.load_config(tmp_path)
