"""The stored compilations of the recipes for TPU slices, and their table."""

import pytest

from experiments.tpu_preflight import measure
from experiments.tpu_preflight.cases import CASES

FOUND = {
  "fits": True, "peak_bytes": 3 << 30, "hbm_bytes": 16 << 30, "memory": {}, "model_flops": 100.0, "compiled_flops": 101.0,
  "collectives": [], "step_seconds": 0.5, "mfu": 0.25, "tokens_per_sec_per_chip": 1e5, "compile_seconds": 40.0,
}  # fmt: skip


def lines(results) -> dict[str, list[str]]:
  rows = [line.strip("| \n").split(" | ") for line in measure.table(results).splitlines()]
  assert len({len(row) for row in rows}) == 1
  return {row[0]: row for row in rows}


def test_the_table_has_a_row_for_every_case_and_costs_the_whole_budget():
  rows = lines({"gpt2_small:fineweb": FOUND, "bert_base:512": FOUND | {"fits": False}})
  assert list(rows)[2:] == [case.name for case in CASES]
  # 10e9 tokens at 1e5 tokens/s/chip are 27.8 chip-hours, on four chips 6.9 hours.
  figures = ["4", "yes", "3.00 of 16.0", "1.010", "0.5", "0.250", "100,000", "10", "7", "28", "40"]
  assert rows["gpt2_small:fineweb"][2:] == figures
  assert rows["bert_base:512"][3] == "**no**"
  assert rows["llama2_7b:v5e_4x4"][3:] == ["-"] * 6 + ["2,000", "-", "-", "-"]


def test_writing_keeps_the_text_around_the_table(tmp_path, monkeypatch):
  readme, results = tmp_path / "README.md", tmp_path / "results.json"
  readme.write_text(f"before\n{measure.BEGIN}old\n{measure.END}after\n")
  monkeypatch.setattr(measure, "README", readme)
  monkeypatch.setattr(measure, "RESULTS", results)
  measure.write({"gpt2_small:fineweb": FOUND})
  measure.write(measure.read())
  assert readme.read_text() == f"before\n{measure.BEGIN}{measure.table({'gpt2_small:fineweb': FOUND})}{measure.END}after\n"
  assert measure.read() == {"gpt2_small:fineweb": FOUND}


def test_the_stored_table_is_that_of_the_stored_results():
  text = measure.README.read_text()
  assert measure.BEGIN + measure.table(measure.read()) + measure.END in text
  assert set(measure.read()) <= {case.name for case in CASES}


def test_a_compilation_that_writes_nothing_is_its_last_line(monkeypatch):
  monkeypatch.setattr(measure.sys, "executable", "false")
  with pytest.raises(RuntimeError, match="exit code 1"):
    measure.compile_case(CASES[0])
