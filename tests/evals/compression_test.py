"""Compressors to beat: bits of what the held-out text adds to the training text, per byte of it and of each end."""

import bz2
import types

import pytest

from lm.config import ConfigError
from lm.evals.compression import Compression

TEXTS = {"train": ["one two three"] * 3, "validation": ["four", "fünf six"]}


def test_bits_are_those_that_the_split_adds_by_its_own_bytes():
  source = lambda _, split: [{"text": text} for text in TEXTS[split]]
  run = types.SimpleNamespace(config=types.SimpleNamespace(all_streams={"docs": None}), source=source)
  found = dict(Compression(run)({}))
  train, both = b"one two three\n" * 3, b"one two three\n" * 3 + "four\nfünf six\n".encode()
  added = len(bz2.compress(both)) - len(bz2.compress(train))
  assert found["baseline/bz2_bits_per_byte"] == pytest.approx(8 * added / (5 + 10))
  assert found.keys() == {"baseline/bz2_bits_per_byte", "baseline/xz_bits_per_byte"}


def test_what_holds_no_text_is_refused():
  run = types.SimpleNamespace(
    config=types.SimpleNamespace(all_streams={"talk": None}), source=lambda *_: [{"prompt": "a", "response": "b"}]
  )
  with pytest.raises(ConfigError, match="'compression': compresses text; an example of 'talk' has prompt, response"):
    Compression(run)
