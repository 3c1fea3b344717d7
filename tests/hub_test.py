"""Where a checkpoint is: folders, the hub's cache without a network, and one line where neither has it."""

import pytest

from lm import hub
from lm.config import ConfigError


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The hub's cache with one model, and no network."""
  from huggingface_hub import constants

  snapshot = tmp_path / "models--someone--small" / "snapshots" / ("0" * 40)
  snapshot.mkdir(parents=True)
  (snapshot / "config.json").write_text("{}")
  (tmp_path / "models--someone--small" / "refs").mkdir()
  (tmp_path / "models--someone--small" / "refs" / "main").write_text("0" * 40)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  return snapshot


def test_a_folder_is_itself(tmp_path, monkeypatch):
  assert hub.resolve(str(tmp_path)) == tmp_path
  monkeypatch.setenv("HOME", str(tmp_path))
  assert hub.resolve("~") == tmp_path


def test_an_id_is_found_in_the_cache_without_a_network(cache):
  assert hub.resolve("someone/small") == cache


def test_an_id_that_is_not_in_the_cache_is_one_line(cache):
  with pytest.raises(ConfigError, match="^someone/large: no such folder, and the hub does not give it: .*") as caught:
    hub.resolve("someone/large")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["./missing", "/no/such/folder", "a/b/c", "missing folder", "..", "a//b", "--a/b"])
def test_what_is_no_id_is_not_asked_for(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  if path == "..":
    assert hub.resolve(path).resolve() == tmp_path.parent
    return
  with pytest.raises(ConfigError, match="no such folder"):
    hub.resolve(path)
