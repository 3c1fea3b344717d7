"""The place of sources: relative paths are below the config's data_dir."""

from lm import config
from lm.config import Plug
from lm.data import source


def test_relative_paths_are_below_data_dir(tmp_path):
  (tmp_path / "a.txt").write_text("first line\n")
  (tmp_path / "b.jsonl").write_text('{"text": "a row"}\n')
  streams = {
    "lines": {"task": "causal", "data": {"name": "text", "path": "a.txt"}},
    "rows": {"task": "causal", "data": {"name": "table", "path": "b.jsonl"}},
    "absolute": {"task": "causal", "data": {"name": "text", "path": [str(tmp_path / "a.txt"), "b.jsonl"]}},
    "docs": {"task": "causal", "data": "pydocs"},  # has no paths
  }
  cfg = config.from_dict({"streams": streams, "data_dir": str(tmp_path)})
  assert [source.make(cfg, name, "train")[0] for name in ("lines", "rows")] == [{"text": "first line"}, {"text": "a row"}]
  assert [example["text"] for example in source.make(cfg, "absolute", "train")] == ["first line", "a row"]
  assert source.located(Plug("text", (("path", "gs://b/a.txt"),)), "x") == Plug("text", (("path", "gs://b/a.txt"),))
  assert source.located(Plug("text", (("path", "a"),)), "gs://b/x") == Plug("text", (("path", "gs://b/x/a"),))
  assert len(source.make(cfg, "docs", "validation"))
  assert source.located(Plug("text", (("path", "a.txt"),)), "") == Plug("text", (("path", "a.txt"),))
