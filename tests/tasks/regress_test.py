"""Numbers for texts: rows are those of classification, the loss is the squared error by hand, bad labels name their row."""

import jax
import numpy as np
import pytest

from lm.config import ConfigError
from lm.data import store
from lm.data.sources.memory import Memory
from lm.data.tokenizer import Bytes
from lm.tasks.classify import Classify
from lm.tasks.regress import Regress
from tests.conftest import TEXTS, make_run


@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_those_of_classification(pair):
  example, tok = {"text": "ab", "text_pair": "xyz"}, Bytes()
  ours, theirs = (task(pair=pair).prepare(example, tok)[0] for task in (Regress, Classify))
  for name in ("tokens", "place"):
    np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_loss_is_the_squared_error_and_an_example_without_a_number_has_no_weight():
  run = make_run("regress")
  (task,) = run.tasks.values()
  objective, batch = run.program.spec.objective, run.loader.batch(0)
  params = run.init_state().params
  found = jax.device_get(objective.predict(params, batch))
  expected = np.sum((found["regress/value"] - batch["regress"]["label"]) ** 2)
  assert float(objective.sums(params, batch)["regress/loss"]) == pytest.approx(expected, rel=1e-5)
  assert float(objective.denominators(batch)["regress/loss"]) == 8
  described = task.describe_predictions({"value": found["regress/value"]}, run.tokenizer)
  assert described == [{"value": pytest.approx(float(value))} for value in found["regress/value"]]
  rows = {name: np.ones((3, 4), int) for name in ("segment_ids", "tokens", "place")} | {"label": np.array([0.5, np.nan, 2])}
  made = task.corrupt(rows, None, run.tokenizer, 4)
  assert made["weights"].tolist() == [1, 0, 1]
  assert made["label"].tolist() == [0.5, 0, 2]


@pytest.mark.parametrize("label", [3, 3.0, "3", " 3.0 ", "3e0", np.float32(3)])
def test_numbers_and_their_texts_are_taken(label):
  assert Regress().prepare({"text": "a", "label": label}, Bytes())[0]["label"] == 3


@pytest.mark.parametrize("label", ["good", "", "nan", "inf", float("nan"), None, True, [1.0]])
def test_a_label_that_is_no_number_is_one_line(label):
  with pytest.raises(ConfigError, match=r"^label=.*: accepted is a finite number[^\n]*$"):
    Regress().prepare({"text": "a", "label": label}, Bytes())


def test_a_bad_example_names_its_row(tmp_path):
  source = Memory(texts=("a", "b", "c"), text_labels=("1", "2", "nan"))
  with pytest.raises(ConfigError, match=r"^data 'memory': row 2: label='nan': accepted is a finite number"):
    store.build(source, Bytes(), Regress(), tmp_path)


def test_data_without_numbers_is_refused(tmp_path):
  (tmp_path / "x.csv").write_text("text,score\n" + "".join(f"text {i},{i / 7}\n" for i in range(40)))
  table = {"name": "table", "path": str(tmp_path / "x.csv"), "label": "score"}
  message = r"'regress' needs examples labelled with numbers; .*has no numbers \(data.label with data.label_type=number\)"
  for data in (
    table,
    {"name": "memory", "texts": TEXTS},
    {"name": "memory", "texts": ("x", "y"), "text_labels": ("1", "good")},
  ):
    with pytest.raises(ConfigError, match=message):
      make_run("regress", data=data)
  make_run("regress", data={**table, "label_type": "number"})
  with pytest.raises(ConfigError, match="'classify' needs labelled examples of 2 classes or more"):
    make_run("classify", data={**table, "label_type": "number"})
