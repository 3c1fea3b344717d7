"""A checkpoint as a value: packed and padded rows give what whole rows give, and a refused export leaves nothing behind."""

import dataclasses

import numpy as np
import pytest

from lm import pretrained
from lm.config import ConfigError
from lm.interop import load_pretrained, save_pretrained
from tests.interop.directories import GOLDEN, make
from tests.parity.agreement import assert_agree, random_tokens

TOKENS = random_tokens(np.random.default_rng(5), 2, 24, vocab=64)
CUT = 13  # where a second document begins
PER_TOKEN = ("hidden_states", "logits")


@pytest.fixture(scope="module", params=["bert-mlm", "roberta-mlm", "gpt2-lm", "gemma3", "qwen3-moe"])
def model(request):
  return load_pretrained(GOLDEN / request.param)


def test_packed_documents_are_those_alone(model):
  segments = np.broadcast_to(np.where(np.arange(24) < CUT, 1, 2), TOKENS.shape)
  packed = model.run(TOKENS, segment_ids=segments)
  for part in (slice(0, CUT), slice(CUT, 24)):
    alone = model.run(TOKENS[:, part])
    here = {name: packed[name][..., part, :] for name in PER_TOKEN}
    assert_agree(here, {name: alone[name] for name in PER_TOKEN}, np.ones_like(TOKENS[:, part]))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("form", [int, bool])
def test_padding_changes_nothing(side, form, model):
  alone = model.run(TOKENS)
  width = ((0, 0), (0, 7) if side == "right" else (7, 0))
  tokens, mask = np.pad(TOKENS, width, constant_values=63), np.pad(np.ones_like(TOKENS), width).astype(form)
  padded, there = model.run(tokens, attention_mask=mask), slice(0, 24) if side == "right" else slice(7, 31)
  here = {name: padded[name][..., there, :] for name in PER_TOKEN}
  assert_agree(here, {name: alone[name] for name in PER_TOKEN}, np.ones_like(TOKENS))


def test_a_refused_export_leaves_nothing_behind(tmp_path, monkeypatch):
  found = load_pretrained(make(tmp_path / "first", "bert-base-uncased", "mlm"))

  def refuse(*_):
    raise ConfigError("tokenizer: cannot be written")

  monkeypatch.setattr(pretrained, "to_huggingface", refuse)
  with pytest.raises(ConfigError, match="cannot be written"):
    save_pretrained(found, tmp_path / "out")
  mixed = dataclasses.replace(found.model.cfg, norm="rmsnorm")
  with pytest.raises(ConfigError, match=r"no architecture of transformers is this model; the nearest, .*norm='rmsnorm'"):
    save_pretrained(dataclasses.replace(found, model=dataclasses.replace(found.model, cfg=mixed)), tmp_path / "out")
  assert not (tmp_path / "out").exists()
