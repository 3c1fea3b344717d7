"""The stored compilations of the recipes for TPU slices, and their table."""

import importlib.util

import pytest

from experiments.tpu_preflight import compare, measure
from experiments.tpu_preflight.cases import CASES
from lm.chips import GIB

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


def test_the_comparison_divides_by_what_maxtext_takes():
  name = "llama2_7b, 1 x 2048, full"
  row = compare.ROWS[name]
  assert row.case.settings[:3] == ("batch_size=16", "seq_len=2048", "tokens_per_device=2048")
  other = "gpt2, 8 x 1024, dots"
  half = {"step_s": row.step_ms / 2e3, "peak_bytes": int(row.peak_gib * GIB)}
  double = {"step_s": 2 * compare.ROWS[other].step_ms / 1e3, "peak_bytes": int(compare.ROWS[other].peak_gib * GIB)}
  found = [line.strip("| \n").split(" | ") for line in compare.table({name: half, other: double}).splitlines()]
  ratios = {line[0]: (line[4], line[7]) for line in found if len(line) == 8}
  assert ratios[name] == ("0.500", "1.000")
  assert ratios[other] == ("2.000", "1.000")
  assert compare.table({name: half, other: double}).splitlines()[-1].startswith("| geometric mean of 2 |  |  |  | 1.000 |")


def test_the_stored_comparison_is_that_of_the_stored_results():
  assert compare.read().keys() == compare.ROWS.keys()
  assert compare.BEGIN + compare.table(compare.read()) + compare.END in measure.README.read_text()


def test_a_compilation_that_writes_nothing_is_its_last_line(monkeypatch):
  monkeypatch.setattr(measure.sys, "executable", "false")
  with pytest.raises(RuntimeError, match="exit code 1"):
    measure.compile_case(CASES[0])


def test_every_recipe_fits_the_slice_that_it_is_sized_for():
  found = measure.read()
  assert found.keys() == {case.name for case in CASES}
  for name, each in found.items():
    assert not measure.complaint(each, each), name
    assert 0 < each["peak_bytes"] == sum(each["memory"].values()) <= each["hbm_bytes"], name
    assert 0.1 < each["mfu"] < 0.7, name


def test_a_peak_that_moved_or_does_not_fit_is_said():
  moved = FOUND | {"peak_bytes": int(3.4 * (1 << 30))}
  assert measure.complaint(moved, FOUND) == "peak of 3.40 GiB, 3.00 are stored"
  assert measure.complaint(FOUND | {"fits": False}, FOUND) == "does not fit: 3.00 of 16.0 GiB"
  assert not measure.complaint(FOUND | {"peak_bytes": int(3.2 * (1 << 30))}, FOUND)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86-64")
@pytest.mark.parametrize("name", ["gpt2_small:fineweb", "llama3_8b:lora"])
def test_compiling_again_gives_the_stored_peak(name):
  (case,) = (case for case in CASES if case.name == name)
  assert not measure.complaint(measure.compile_case(case), measure.read()[name])
