"""Pairs of a stretch with its own rest or another's, the loss of both heads, and a pooler that fine-tuning inherits."""

import dataclasses

import jax
import numpy as np
import pytest

from lm import train
from lm.config import ConfigError
from lm.data import store
from lm.data.loader import Loader, StreamData
from lm.data.sources.memory import Memory
from lm.tasks.sentence_pair import SentencePair
from tests.conftest import LABELS, TEXTS, make_run
from tests.data.corrupt_test import TOK

DOCUMENTS = tuple(" ".join(f"{chr(97 + d)}{n} is {n * d}." for n in range(d % 5 + 1)) for d in range(20))


def make_loader(tmp_path, kind="nsp", texts=DOCUMENTS, **options):
  task = SentencePair(mask_rate=0.2, kind=kind, **options)
  data = store.build(Memory(texts=texts), TOK, task, tmp_path)
  return Loader([StreamData("s", "s", task, data, TOK)], batch_size=16, seq_len=64)


def unmasked(batch, row):
  tokens, own = batch["inputs"]["tokens"][row].copy(), batch["s"]
  counted = own["weights"][row] > 0
  tokens[own["masked_positions"][row][counted]] = own["labels"][row][counted]
  return tokens[batch["inputs"]["segment_ids"][row] > 0].tolist()


def texts_of(batch, row):
  """[cls a sep b sep] -> (a, b)"""
  tokens = unmasked(batch, row)
  assert tokens[0] == TOK.cls_id
  assert tokens[-1] == TOK.sep_id
  middle = tokens.index(TOK.sep_id)
  types = batch["inputs"]["token_types"][row]
  assert types[: len(tokens)].tolist() == [0] * (middle + 1) + [1] * (len(tokens) - middle - 1)
  assert not types[len(tokens) :].any()
  return TOK.decode(tokens[1:middle]), TOK.decode(tokens[middle + 1 : -1])


@pytest.mark.parametrize("kind", ["nsp", "sop"])
def test_half_of_the_pairs_are_wrong_and_none_is_mislabelled(kind, tmp_path):
  loader, counts = make_loader(tmp_path, kind), np.zeros(3, int)
  for step in range(40):
    batch = loader.batch(step)
    for row in range(16):
      (a, b), label = texts_of(batch, row), batch["s"]["pair_label"][row]
      if not batch["s"]["pair_weights"][row]:
        assert (b, label, a.count(".")) == ("", 0, 1)
        counts[2] += 1
        continue
      counts[label] += 1
      assert a.endswith(".") or label
      if label == 0:
        assert a + b in DOCUMENTS
      elif kind == "sop":
        assert b + a in DOCUMENTS
      else:
        (own,) = (text for text in DOCUMENTS if text.startswith(a))
        assert b.strip()[0] != own[0]  # of another document, each of which has a letter of its own
        assert b.strip()[1] in "01234"
        assert len(b) <= len(own) - len(a)
  assert counts[1] / counts[:2].sum() == pytest.approx(0.5, abs=0.08)
  assert counts[2] > 0


def test_pairs_change_with_the_epoch_and_not_with_the_host(tmp_path):
  loader = make_loader(tmp_path)
  whole, halves = loader.batch(5), [loader.batch(5, slice(0, 8)), loader.batch(5, slice(8, 16))]
  for key in ("inputs", "s"):
    for name, values in whole[key].items():
      np.testing.assert_array_equal(np.concatenate([half[key][name] for half in halves]), values)
  seen = {texts_of(loader.batch(step), row) for step in range(30) for row in range(16)}
  assert len(seen) > 4 * len(DOCUMENTS)


def test_long_documents_are_stretches_that_fill_their_rows(tmp_path):
  loader = make_loader(tmp_path, texts=("word one. " * 60, "other two. " * 60), pair_len=61)
  assert (loader.batch(0)["inputs"]["segment_ids"].sum(1) == 64).mean() > 0.7
  heads, counts = (line.split() for line in loader.report().splitlines())
  assert counts[heads.index("cut")] == "0"


def test_both_losses_are_trained_and_the_pooler_is_inherited(tmp_path):
  run = make_run("sentence_pair", total_steps=2, tokenizer="bytes")
  train.train(run, tmp_path / "base")
  batch = run.loader.batch(0)
  params = jax.jit(lambda rng: run.program.spec.model.init(rng))(jax.random.key(0))
  import flax.linen as nn

  sums = jax.jit(run.program.spec.objective.sums)(nn.unbox(params), batch)
  assert set(sums) == {f"sentence_pair/{name}" for name in ("loss", "accuracy", "pair_loss", "pair_accuracy")}
  tuned = make_run("classify", init_from=str(tmp_path / "base"), tokenizer="", model=None)
  assert tuned.base is not None
  assert any(name.startswith("head_classify/pooler") for name in tuned.base.params)
  assert "head_classify/out" in tuned.base.notice
  assert len(LABELS) == len(TEXTS)


def test_heads_of_one_name_and_different_shape_are_refused():
  data = {"name": "memory", "texts": TEXTS}
  streams = {
    "a": {"task": "sentence_pair", "data": data},
    "b": {"task": "classify", "data": {**data, "text_labels": LABELS}},
  }
  with pytest.raises(ConfigError, match="both read head 'classify' but of different shape"):
    make_run("sentence_pair", task=None, data=None, streams=streams)


def test_bad_settings_are_one_line(tmp_path):
  with pytest.raises(ValueError, match=r"task\.kind='rtd': accepted are nsp, sop"):
    SentencePair(kind="rtd")
  with pytest.raises(ValueError, match=r"task\.pair_len=1"):
    SentencePair(pair_len=1)
  with pytest.raises(ConfigError, match="one sequence only"):
    make_loader(tmp_path, texts=("only one. here.",))
  assert dataclasses.replace(SentencePair(), kind="sop").fields.keys() == {"tokens", "opens"}
