"""Multiple choice beside transformers' BertForMultipleChoice: the same scores from the same rows, read and written."""

import jax
import numpy as np
import pytest
import torch
import transformers

from lm import convert, saved, train
from lm.config import ConfigError
from lm.data.tokenizer import Bytes
from lm.interop import load_pretrained
from lm.shapes import INPUTS
from tests.conftest import SIZES, make_run
from tests.parity.families import BERT

pytestmark = pytest.mark.parity
MODEL = {"name": "bert-base-uncased", **SIZES, "vocab_size": 0, "dropout_rate": 0.0}


@torch.no_grad()
def scores_of(model, run, batch) -> np.ndarray:
  """What transformers gives for a batch of ours, [B, N]: each choice is a row of its own there."""
  inputs = batch[INPUTS]
  num_choices = next(iter(run.tasks.values())).num_segments
  made = {
    name: np.zeros((len(inputs["row"]), num_choices, 64), np.int64)
    for name in ("input_ids", "attention_mask", "token_type_ids")
  }
  for row, ids in enumerate(inputs["segment_ids"]):
    for choice in range(num_choices):
      mine = ids == choice + 1
      size = mine.sum()
      made["input_ids"][row, choice, :size] = inputs["tokens"][row][mine]
      made["token_type_ids"][row, choice, :size] = inputs["token_types"][row][mine]
      made["attention_mask"][row, choice, :size] = 1
  return model(**{name: torch.from_numpy(array) for name, array in made.items()}).logits.numpy()


def ours(run, params, batch) -> np.ndarray:
  """log softmax of our scores."""
  return np.log(jax.device_get(jax.jit(run.program.spec.objective.predict)(params, batch))["choose/scores"])


def check(run, params, theirs):
  batch = run.loader.batch(0)
  expected = torch.log_softmax(torch.from_numpy(scores_of(theirs, run, batch)), -1).numpy()
  assert np.ptp(expected) > 1e-2
  np.testing.assert_allclose(ours(run, params, batch), expected, atol=1e-4)


def test_a_checkpoint_of_theirs_gives_its_scores(tmp_path):
  torch.manual_seed(0)
  config = transformers.BertConfig(vocab_size=Bytes().vocab_size, **BERT)
  theirs = transformers.BertForMultipleChoice(config).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.add_(0.1 * torch.randn(parameter.shape))
  theirs.save_pretrained(tmp_path)
  run = make_run("choose", model=None, init_from=str(tmp_path), batch_size=4)
  assert run.base is not None
  assert run.base.notice == "new: none; left out: none"
  check(run, run.init_state().params, theirs)
  assert saved.load_tasks(tmp_path) == {}


def test_a_run_is_exported_as_theirs(tmp_path):
  run = make_run("choose", model=MODEL, total_steps=3, seq_len=96, optimizer={"name": "adamw", "learning_rate": 0.01})
  train.train(run, tmp_path / "run")
  line = convert.export_checkpoint(str(tmp_path / "run"), tmp_path / "out")
  assert "BertForMultipleChoice" in line
  auto = transformers.AutoModelForMultipleChoice
  theirs, said = auto.from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float32)
  assert not any(said.values()), said
  check(run, load_pretrained(tmp_path / "run").params, theirs.eval())
  assert "AutoModelForMultipleChoice.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


def test_a_family_without_such_a_class_is_one_line(tmp_path):
  train.train(make_run("choose", model={**MODEL, "name": "modernbert-base"}, total_steps=1), tmp_path / "run")
  with pytest.raises(
    ConfigError, match="the chooser's head of a modernbert has no counterpart; accepted are mlm, classifier"
  ) as caught:
    convert.export_checkpoint(str(tmp_path / "run"), tmp_path / "out")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()
