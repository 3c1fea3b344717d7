"""Repositories as folders and from a hub that is played here: which files a split has, which are fetched, at which commit."""

import json
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pyarrow
import pytest
from pyarrow import parquet

from lm.config import ConfigError, parse_plug
from lm.data.sources.hub import Hub
from lm.plug import make

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: [sample/10BT/*]
  - split: validation
    path: sample/held/*.jsonl
---
# A card
"""


def write(folder, name, texts, **options):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  if name.endswith(".parquet"):
    parquet.write_table(pyarrow.table({"text": texts, "id": list(range(len(texts)))}), path, row_group_size=2, **options)
  else:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def folder(tmp_path):
  """Three files of the sample, one of the whole, and one that is held out."""
  root = tmp_path / "repository"
  for i in range(3):
    write(root, f"sample/10BT/{i:03}.parquet", [f"sample {i} {j}" for j in range(5)])
  write(root, "data/CC-1/0.parquet", ["whole 0", "whole 1"])
  write(root, "sample/held/a.jsonl", ["held 0", "held 1"])
  (root / "README.md").write_text(CARD)
  (root / ".gitattributes").write_text("")
  return root


def texts(source):
  return [source[i]["text"] for i in range(len(source))]


EVERY = [f"sample {i} {j}" for i in range(3) for j in range(5)]


def test_a_folder_with_a_card(folder):
  source = Hub(repo=str(folder), config="sample-10BT")
  assert texts(source) == EVERY
  assert [source[i]["text"] for i in (14, 0, 7, 8)] == [EVERY[i] for i in (14, 0, 7, 8)]
  assert texts(replace(source, split="validation")) == ["held 0", "held 1"]
  assert texts(replace(source, config="")) == ["whole 0", "whole 1"]
  assert source.describe() == f"hub {folder} (sample-10BT): 3 files"


def test_a_folder_without_a_card_goes_by_words(folder):
  (folder / "README.md").unlink()
  for split in ("train", "validation", "test"):
    write(folder, f"other/{split}-00000-of-00001.parquet", [f"of {split}"])
  for split in ("train", "validation", "test"):
    assert texts(Hub(split, repo=str(folder), config="other")) == [f"of {split}"]
  assert texts(Hub(repo=str(folder), config="10BT")) == EVERY


def test_held_out_documents_are_no_training_documents(folder):
  source = Hub(repo=str(folder), config="sample-10BT", held_out=4, max_documents=3)
  assert texts(source) == EVERY[4:7]
  assert texts(replace(source, split="validation")) == EVERY[:4]
  assert texts(replace(source, max_documents=0)) == EVERY[4:]
  assert len(replace(source, held_out=99)) == 0
  with pytest.raises(IndexError):
    source[3]


class PlayedHub:
  """A hub whose one repository is a folder, and what was asked of it."""

  def __init__(self, folder, monkeypatch):
    self.folder, self.fetched, self.revisions = folder, [], []
    self.sha = "1a2b3c4d5e6f7a8b"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

  def dataset_info(self, repo, revision=None):
    self.revisions.append(revision)
    files = [SimpleNamespace(rfilename=str(p.relative_to(self.folder))) for p in self.folder.rglob("*") if p.is_file()]
    card = huggingface_hub.DatasetCard(CARD).data
    return SimpleNamespace(sha=self.sha, siblings=files, card_data=card)

  def download(self, repo, name, repo_type, revision):
    assert (repo, repo_type, revision) == ("someone/texts", "dataset", self.sha)
    self.fetched.append(name)
    return str(self.folder / name)


@pytest.mark.parametrize(("asked", "num_files"), [(0, 3), (5, 1), (6, 2)])
def test_only_the_files_that_are_needed_are_fetched(asked, num_files, folder, monkeypatch):
  hub = PlayedHub(folder, monkeypatch)
  source = Hub(repo="someone/texts", config="sample-10BT", max_documents=asked)
  source.fingerprint()
  assert source.describe().startswith("hub someone/texts (sample-10BT) at 1a2b3c4d5e6f: 3 files")
  assert not hub.fetched
  assert texts(source) == EVERY[: asked or None]
  assert hub.fetched == [f"sample/10BT/00{i}.parquet" for i in range(num_files)]
  assert hub.revisions == [None]


def test_the_fingerprint_follows_commit_and_what_is_read(folder, monkeypatch):
  hub = PlayedHub(folder, monkeypatch)
  source = Hub(repo="someone/texts", config="sample-10BT")
  others = [replace(source, text="id"), replace(source, max_documents=3), replace(source, config="default")]
  prints = [each.fingerprint() for each in (source, *others, replace(source, split="validation"))]
  hub.sha = "another"
  prints.append(replace(source, revision="v2").fingerprint())
  assert hub.revisions[-1] == "v2"
  assert len(set(prints)) == 6


def test_the_fingerprint_of_a_folder_follows_its_contents_and_not_its_place(folder):
  before = Hub(repo=str(folder), config="sample-10BT").fingerprint()
  moved = folder.rename(folder.with_name("moved"))
  source = Hub(repo=str(moved), config="sample-10BT")
  assert source.fingerprint() == before
  write(moved, "sample/10BT/001.parquet", ["changed"])
  assert replace(source).fingerprint() != before


def test_the_short_form_is_read_by_the_plug_in():
  source = make("data", parse_plug("config.data", "hf:a/b:c(max_documents=1e3)"), split="train")
  assert source == Hub(repo="a/b", config="c", max_documents=1000)


def test_rows_without_text(folder, capsys):
  write(folder, "sample/10BT/001.parquet", ["a", None, "b"])
  source = Hub(repo=str(folder), config="sample-10BT")
  with pytest.raises(ConfigError, match=r"data\.repo: .*001\.parquet row 2: 'text' is empty; data\.on_bad_row=skip"):
    len(source)
  assert texts(replace(source, on_bad_row="skip")) == [*EVERY[:5], "a", "b", *EVERY[10:]]
  assert "1 of " in capsys.readouterr().out


def test_errors_name_setting_and_what_is_accepted(folder, tmp_path, monkeypatch):
  PlayedHub(folder, monkeypatch)
  bare = tmp_path / "bare"
  write(bare, "a/x.parquet", ["a"])
  (tmp_path / "none").mkdir()
  (tmp_path / "none" / "a.txt").write_text("")
  ours = {"repo": str(folder), "config": "sample-10BT"}
  cases = [
    ({}, r"data\.repo='': accepted are a folder, or an id"),
    ({"repo": "missing"}, r"data\.repo='missing': accepted are a folder, or an id"),
    (ours | {"split": "dev"}, r"data\.split='dev': accepted are train, validation, test"),
    (ours | {"split": "test"}, r"has no files of the split 'test', but of train, validation$"),
    (
      {"repo": "someone/texts", "split": "validation"},
      r"no files of the split 'validation', but of train; data\.held_out=1000",
    ),
    (ours | {"config": "sample-11BT"}, r"data\.config='sample-11BT': of .* accepted are default, sample-10BT$"),
    ({"repo": str(bare), "config": "b"}, r"data\.config='b': of .* accepted are its folders a$"),
    ({"repo": str(tmp_path / "none")}, r"has no \.parquet, \.jsonl, \.json files$"),
    (ours | {"text": "body"}, r"data\.text='body': no such column in .*; its columns, the nearest first: 'id', 'text'"),
    (ours | {"max_documents": -1}, r"data\.max_documents=-1: accepted"),
    (ours | {"revision": "main"}, r"data\.revision='main': no effect"),
    (ours | {"on_bad_row": "drop"}, r"data\.on_bad_row='drop': accepted"),
  ]
  for options, message in cases:
    with pytest.raises(ConfigError, match=message):
      len(Hub(**options))


def test_no_network_is_one_clear_line(monkeypatch):
  def refuse(*_, **__):
    raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled\nmore")

  monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
  with pytest.raises(
    ConfigError, match=r"data\.repo='a/b': no such folder, and the hub does not give it: offline mode is enabled$"
  ):
    len(Hub(repo="a/b"))
