"""Pictures and tables of runs: every run drawn, like compared with like, a run that is still writing no obstacle."""

import json

from lm import report
from tools import report as tool

SPLITS = {"validation": 0.4, "test": 0.9}


def write_lines(path, entries):
  path.mkdir(parents=True)
  (path / "metrics.jsonl").write_text("".join(json.dumps({"time": 0.0, **entry}) + "\n" for entry in entries))


def write_summary(path, best):
  summary = {"status": "finished", "step": 8, "params": {"total": 3_344_576, "trainable": 900}, "best": best}
  (path / "summary.json").write_text(json.dumps(summary | {"tokens_per_sec": 5.0, "time": {"train": 3.0, "eval": 1.0}}))


def make_language_model(path, loss):
  entries = [{"step": s, "train/loss": loss + 1 / (s + 1), "train/tokens_per_sec": 5.0} for s in range(1, 9)]
  entries += [{"step": 0, "eval/validation/loss": 9.0, "baseline/xz_bits_per_byte": 2.0}]
  write_lines(path, [*entries, {"step": 8, "eval/validation/loss": loss, "eval/validation/bits_per_byte": loss / 2}])
  write_summary(path, {"eval/validation/loss": {"value": loss - 0.5, "step": 6}})


def make_classifier(path):
  values = {f"eval/{split}/{kind}": value for split, value in SPLITS.items() for kind in ("accuracy", "macro_f1", "loss")}
  baselines = {f"baseline/{split}_majority_accuracy": value / 10 for split, value in SPLITS.items()}
  write_lines(path, [{"step": 8, **values, **baselines}])
  write_summary(path, {"eval/test/accuracy": {"value": 0.99, "step": 4}})


def drawn(monkeypatch):
  """The figures that are saved, by file name."""
  figures, save = {}, report.save_figure

  def keep(figure, title, path):
    figures[path.name] = figure
    return save(figure, title, path)

  monkeypatch.setattr(report, "save_figure", keep)
  return figures


def test_every_run_is_drawn_and_all_are_compared(tmp_path):
  for name, loss in (("a", 3.0), ("b/c", 2.0)):
    make_language_model(tmp_path / name, loss)
  comparison = report.compare(tmp_path)
  assert [str(picture.relative_to(tmp_path)) for picture in comparison.pictures] == [
    "a/curves.png", "b/c/curves.png", "comparison.png",
  ]  # fmt: skip
  assert all(picture.stat().st_size > 10_000 for picture in comparison.pictures)
  assert "| b/c | 1.000 | 2.000 (best 1.500) | 8 | 3.34M | 900 | 5 | 4 s |" in comparison.markdown()
  assert (tmp_path / "comparison.md").read_text() == comparison.markdown()


def test_runs_that_measure_different_things_have_tables_of_their_own(tmp_path):
  make_language_model(tmp_path / "lm", 3.0)
  make_classifier(tmp_path / "full-s0")
  make_classifier(tmp_path / "full-s1")
  tables = report.compare(tmp_path).tables
  assert [[row[0] for row in table.rows] for table in tables] == [["full-s0", "full-s1"], ["lm"]]
  assert tables[0].columns[1:3] == ["validation accuracy", "test accuracy"]
  assert tables[0].rows[0][1:3] == ["0.400", "0.900"]  # no best of a test split: nothing may select on it


def test_a_panel_holds_one_split_and_one_unit(tmp_path, monkeypatch):
  figures = drawn(monkeypatch)
  make_classifier(tmp_path / "full-s0")
  make_classifier(tmp_path / "full-s1")
  make_language_model(tmp_path / "lm", 3.0)
  report.compare(tmp_path)
  panels = {axis.get_ylabel(): axis for axis in figures["comparison.png"].axes}
  assert {"validation loss (nats per example)", "validation loss (nats per token)"} < set(panels)
  assert not any("test" in label for label in panels)
  accuracy = panels["validation accuracy (share of examples)"]
  assert {tuple(line.get_ydata()) for line in accuracy.get_lines()[:2]} == {(0.4,)}
  assert [text.get_text() for text in accuracy.get_legend().get_texts()] == ["full", "validation majority: 0.04"]
  assert "xz: 2" in [text.get_text() for text in panels["validation bits per byte"].get_legend().get_texts()]


def test_the_summed_loss_of_several_streams_is_on_no_axis(tmp_path, monkeypatch):
  figures = drawn(monkeypatch)
  write_lines(tmp_path / "mix", [{"step": s, "train/docs/loss": 3.0, "train/loss": 6.0} for s in (1, 2)])
  report.draw_run(tmp_path / "mix")
  (axis,) = figures["curves.png"].axes
  assert [line.get_label() for line in axis.get_lines()] == ["train docs"]


def test_a_run_that_is_still_writing_is_shown_as_far_as_it_is(tmp_path):
  write_lines(tmp_path / "a", [{"step": 0, "eval/validation/loss": 9.0}, {"step": 3, "eval/validation/loss": None}])
  with (tmp_path / "a/metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "train/lo')
  (table,) = report.compare(tmp_path).tables
  assert table.rows == [["a (running)", "9.000", "0", "-", "-", "-", "-"]]


def test_a_run_without_a_known_metric_is_drawn(tmp_path):
  write_lines(tmp_path / "a", [{"step": 1, "train/odd": 1.0}])
  assert report.draw_run(tmp_path / "a").is_file()


def test_a_directory_without_runs_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
  assert tool.main() == 2
  assert capsys.readouterr().err == f"error: {tmp_path}: no run (a folder with metrics.jsonl) in or below it\n"


def test_the_program_prints_the_table_and_the_pictures(tmp_path, monkeypatch, capsys):
  make_language_model(tmp_path / "a", 3.0)
  monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
  assert tool.main() == 0
  output = capsys.readouterr().out
  assert "3.000 (best 2.500)" in output and str(tmp_path / "comparison.png") in output
