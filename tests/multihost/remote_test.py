"""A workdir in a bucket: nothing is appended to there, whole files arrive, and the same commands work on it."""

import json

import numpy as np
import pytest

import lm
from lm import build, evaluate, files, report, saved, train
from lm.config import ConfigError
from tests.conftest import TEXTS, make_config, make_run
from tests.multihost import bucket, processes

WORKDIR = "gs://bucket/runs/one"
MAIN = """
import sys
from lm import main
from tests.multihost import bucket
bucket.register()
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture
def objects(tmp_path, monkeypatch):
  """The bucket's objects by name; the cache folder of this machine is new."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  with bucket.serving() as found:
    yield found


def text(objects, name):
  return objects[f"runs/one/{name}"][1].decode()


def test_a_run_in_a_bucket_is_that_of_a_folder_stopped_and_resumed(objects, tmp_path):
  workdir, calls = files.path(WORKDIR, "--workdir"), iter(range(100))
  unbroken = train.train(make_run(checkpoint_every=3), tmp_path / "whole")
  stopped = train.train(make_run(checkpoint_every=3), workdir, stop=lambda: next(calls) == 5)
  assert (stopped["status"], stopped["step"]) == ("interrupted", 5)
  assert not list((tmp_path / "cache/lm/runs").rglob("*.*"))
  kept = make_run(checkpoint_every=3)
  resumed = train.train(kept, workdir)
  assert resumed["status"] == "finished"
  assert [resumed[name] for name in ("loss_sha256", "params_sha256")] == [
    unbroken[name] for name in ("loss_sha256", "params_sha256")
  ]
  assert objects["runs/one/losses.f32"][1] == (tmp_path / "whole/losses.f32").read_bytes()
  steps = [json.loads(line)["step"] for line in text(objects, "metrics.jsonl").splitlines()]
  assert steps == [json.loads(line)["step"] for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
  assert len([name for name in objects if "/events.out" in name]) == 2
  assert json.loads(text(objects, "summary.json"))["status"] == "finished"
  assert not bucket.Bucket.appended
  assert train.train(kept, workdir) == json.loads(text(objects, "summary.json"))

  found = evaluate.evaluate_workdir(build.load_run(workdir), workdir, "best")
  assert json.loads(text(objects, f"evaluations/{found['step']}.json")) == found
  pictures = report.compare(files.path("gs://bucket/runs", "directory")).pictures
  assert [str(path) for path in pictures] == [f"{WORKDIR}/curves.png", "gs://bucket/runs/comparison.png"]
  assert objects["runs/one/curves.png"][1].startswith(b"\x89PNG")
  there, here = lm.load(WORKDIR), lm.load(tmp_path / "whole")
  assert there.fingerprint() == here.fingerprint()
  assert saved.find(WORKDIR, "path") == workdir


def test_records_arrive_at_every_checkpoint_and_evaluation_and_when_a_run_fails(objects, monkeypatch):
  workdir, seen = files.path(WORKDIR, "--workdir"), []

  def stop():
    sent = objects.get("runs/one/losses.f32", (0, b""))[1]
    seen.append(len(sent) // 4)
    if len(seen) == 9:
      raise RuntimeError("a disk is full")
    return False

  with pytest.raises(RuntimeError, match="a disk is full"):
    train.train(make_run(checkpoint_every=4, eval_every=3), workdir, stop=stop)
  assert seen == [0, 0, 0, 3, 4, 4, 6, 6, 8]
  assert np.frombuffer(objects["runs/one/losses.f32"][1], "<f4").shape == (8,)
  assert json.loads(text(objects, "manifest.json"))["total_steps"] == 10


@pytest.mark.slow
def test_a_fine_tuned_run_finds_its_base_and_its_tokenizer_in_the_bucket(objects, tmp_path):
  from lm.data import tokenizer

  model = str(tmp_path / "letters.model")
  tokenizer.train(TEXTS, model, vocab_size=320)
  train.train(make_run(tokenizer=model, total_steps=2), files.path(WORKDIR, "--workdir"))
  assert "runs/one/tokenizer.model" in objects
  second = files.path("gs://bucket/runs/two", "--workdir")
  cfg = make_config(tokenizer="", model=None, init_from=WORKDIR, peft={"name": "lora", "rank": 2}, total_steps=2)
  run = build.make_run(cfg)
  train.train(run, second)
  base = json.loads(objects["runs/two/manifest.json"][1])["base"]
  assert base["workdir"] == WORKDIR
  assert build.load_run(second).base.sha256 == base["sha256"]
  assert lm.load(str(second)).generate(["a"], max_new_tokens=2)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_in_a_bucket(objects):
  run = processes.train_flags(WORKDIR)
  for flags in (run, ["--mode=evaluate", f"--workdir={WORKDIR}"]):
    ended = processes.run([flags, flags], devices=4, program=["-c", MAIN])
    assert [process.code for process in ended] == [0, 0], [process.error[-2000:] for process in ended]
  assert json.loads(text(objects, "summary.json"))["step"] == 6
  assert len(text(objects, "metrics.jsonl").splitlines()) == 9
  assert len([name for name in objects if "/events.out" in name]) == 1
  assert "runs/one/evaluations/6.json" in objects and "runs/one/curves.png" in objects
  assert not [name for name in objects if ".hosts" in name]


@pytest.mark.parametrize(
  ("url", "line"),
  [
    ("s3://bucket/run", "--workdir=s3://bucket/run: accepted are a folder of this machine and gs://"),
    ("memory://run", "--workdir=memory://run: accepted are"),
  ],
)
def test_other_urls_are_one_line(url, line):
  with pytest.raises(ConfigError) as error:
    files.path(url, "--workdir")
  assert str(error.value).startswith(line)


def test_a_bucket_without_gcsfs_is_one_line(monkeypatch):
  import fsspec

  def missing(_):
    raise ImportError("Please install gcsfs to access Google Storage")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(ConfigError, match=r"--workdir=gs://bucket/c: needs gcsfs: pip install 'lm\[gcs\]'"):
    files.path("gs://bucket/c", "--workdir")


def test_what_is_no_workdir_in_a_bucket_is_one_line(objects):
  with pytest.raises(ConfigError, match="path=gs://bucket/none: not the workdir of a run; a Hugging Face directory must be on"):
    lm.load("gs://bucket/none")
