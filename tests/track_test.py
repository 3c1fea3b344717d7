"""What a run writes: metrics that stay valid JSON and are cut on resume, exact losses, one console line."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm import files
from lm.config import ConfigError
from lm.track import Clock, Losses, Records, Tracker


def lines(path):
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_json_and_later_steps_are_cut_on_resume(tmp_path):
  with Tracker(tmp_path, total_steps=9, stream=io.StringIO()) as tracker:
    for step in (1, 2, 3):
      tracker.write(step, {"train/loss": 1.0 / step, "train/odd": float("nan")})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "ti')  # a kill in the middle of a line
  with Tracker(tmp_path, total_steps=9, resume_step=2, stream=io.StringIO()) as tracker:
    tracker.write(3, {"train/loss": 7.0})
  assert [(entry["step"], entry["train/loss"]) for entry in lines(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
  assert lines(tmp_path)[0]["train/odd"] is None


def test_tensorboard_files_hold_the_scalars(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  with Tracker(tmp_path, total_steps=2, stream=io.StringIO()) as tracker:
    tracker.write(1, {"train/loss": 0.5})
  data, found = next(tmp_path.glob("events*")).read_bytes(), {}
  while data:
    size = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + size])
    found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
    data = data[12 + size + 4 :]
  assert found["train/loss"] == (1, 0.5)


def test_console_is_plain_lines_where_it_is_no_terminal(tmp_path):
  stream = io.StringIO()
  with Tracker(tmp_path, total_steps=10, stream=stream) as tracker:
    tracker.progress(4, 2.6, 1e-3, 1234.0)
    tracker.progress(5, 2.5, 1e-3, 1234.0, mfu=0.41, data_wait=0.02)
    tracker.say("saved")
  text = stream.getvalue()
  assert "\r" not in text
  assert all(
    part in text for part in ("step 5/10", "loss 2.5000", "1,234 tokens/s", "MFU 41.0%", "data wait 2.0%", "ETA", "saved\n")
  )


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_line_is_rewritten_and_never_wraps(tmp_path, monkeypatch):
  monkeypatch.setenv("COLUMNS", "40")
  stream = Terminal()
  with Tracker(tmp_path, total_steps=100_000, stream=stream) as tracker:
    tracker.progress(50_000, 2.5, 1e-3, 1_234_567.0, mfu=0.41, data_wait=0.02)
    tracker.say("saved")
    tracker.progress(50_001, 2.4, 1e-3, 1_234_567.0)
  first, said, again, end = stream.getvalue().removeprefix("\r\x1b[2K").split("\r\x1b[2K") + [""]
  assert first.startswith("step 50000/100000") and len(first) < 40
  assert said == f"saved\n{first}"  # the text takes the line's place, the line stands below it again
  assert again.startswith("step 50001/100000") and again.endswith("\n") and not end


def test_an_interrupted_rewrite_of_metrics_loses_nothing(tmp_path, monkeypatch):
  with Tracker(tmp_path, total_steps=9, stream=io.StringIO()) as tracker:
    tracker.write(1, {"train/loss": 1.0})

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("pathlib.Path.replace", killed)
  with pytest.raises(KeyboardInterrupt):
    Tracker(tmp_path, total_steps=9, resume_step=1, stream=io.StringIO())
  assert [entry["step"] for entry in lines(tmp_path)] == [1]


def test_losses_are_exact_and_truncated(tmp_path):
  values = np.random.default_rng(0).normal(size=7).astype(np.float32)
  with Losses(tmp_path / "losses.f32") as losses:
    for step in (0, 1, 2, 3, 3, 4, 5, 6):  # one of them again, as after an interruption
      losses.write(step, values[step])
    before = losses.sha256()
    losses.truncate(5)
    assert losses.read().tobytes() == values[:5].tobytes()
    for step in (5, 6):
      losses.write(step, values[step])
    assert losses.sha256() == before


def test_losses_that_lack_steps_of_the_checkpoint_are_an_error_and_stay_as_they_are(tmp_path):
  with Losses(tmp_path / "losses.f32") as losses:
    losses.write(0, np.float32(1.0))
    losses.write(1, np.float32(2.0))
    with pytest.raises(ValueError, match=r"holds the losses of 2 steps.*step 5"):
      losses.truncate(5)
    assert losses.read().tolist() == [1.0, 2.0]


def test_clock_counts_inner_time_once():
  import time

  clock = Clock()
  with clock("outer"):
    time.sleep(0.02)
    with clock("inner"):
      time.sleep(0.05)
  assert 0.04 < clock.seconds["inner"] < 0.2
  assert clock.seconds["outer"] < clock.seconds["inner"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_workdir_is_one_process_s_alone_until_it_ends(index, tmp_path):
  make = lambda: Records(tmp_path / "run", tmp_path / "cache", index)
  with make(), pytest.raises(ConfigError, match=rf"run: process {os.getpid()} trains there; stop it"), make():
    pass
  with make(), Records(tmp_path / "run", tmp_path / "cache", index + 1):
    pass
  assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_process_that_was_killed_holds_nothing(tmp_path):
  program = f"""
import pathlib, time
from lm import files
with files.alone(pathlib.Path({str(tmp_path / ".lock")!r}), pathlib.Path("run")):
  print("held", flush=True)
  time.sleep(60)
"""
  with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == "held\n"
    with (
      pytest.raises(ConfigError, match=f"run: process {other.pid} trains there"),
      files.alone(tmp_path / ".lock", Path("run")),
    ):
      pass
    other.kill()
  with files.alone(tmp_path / ".lock", Path("run")):
    pass
