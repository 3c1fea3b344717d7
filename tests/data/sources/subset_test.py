"""Tables that are read in part or from txt: some examples of each label, cells parted by a delimiter of one's own."""

import pytest

from lm.config import ConfigError
from lm.data.sources.table import Table
from tests.data.sources.table_test import ROWS, every, examples, write_csv


def test_txt_with_a_delimiter_is_a_table(tmp_path):
  path = tmp_path / "x.txt"
  path.write_bytes('Profit ros\xe9 .@positive\r\nIt "fell@negative\r\n'.encode("iso-8859-1"))
  reading = {"delimiter": "@", "columns": ("text", "label"), "quoting": False, "encoding": "iso-8859-1"}
  assert set(every(path=str(path), label="label", **reading)) == {"Profit ros\xe9 .", 'It "fell'}
  with pytest.raises(ConfigError, match="data.columns=.*: no effect; only .csv, .tsv files have it, and txt with a delimiter"):
    Table(path=str(path), columns=("text",))


def test_a_few_examples_of_each_label_are_the_same_whatever_else_is_there(tmp_path):
  few = lambda rows, **options: {
    e["text"] for e in examples(Table(path=write_csv(tmp_path / "x.csv", rows), label="label", **options))
  }
  chosen = few(ROWS, examples_per_label=5)
  assert len(chosen) == 10 and {dict(ROWS)[text] for text in chosen} == {"a", "b"}
  assert sum(dict(ROWS)[text] == "a" for text in chosen) == 5
  assert few(ROWS[::-1], examples_per_label=5) == chosen != few(ROWS, examples_per_label=5, subset_seed=1)
  assert few(ROWS, examples_per_label=3) < chosen
  assert few(ROWS, examples_per_label=1000) == few(ROWS)
  split = lambda name, **options: examples(Table(name, path=str(tmp_path / "x.csv"), label="label", **options))
  for name in ("validation", "test"):
    assert split(name, examples_per_label=5) == split(name) != []
  with pytest.raises(ConfigError, match="data.subset_seed=5: no effect without data.examples_per_label"):
    Table(path=str(tmp_path / "x.csv"), label="label", subset_seed=5)
