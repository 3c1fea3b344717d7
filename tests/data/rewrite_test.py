"""Span corruption, UL2, fill-in-the-middle and prefixes: equal to a one-example reference, undone to the text."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import train
from lm.config import ConfigError
from lm.data import corrupt, rewrite
from lm.data import tokenizer as tokenizers
from lm.tasks.fim import Fim
from lm.tasks.prefix_lm import PrefixLm
from lm.tasks.span_corruption import SpanCorruption
from lm.tasks.ul2 import DENOISERS, Ul2
from tests.conftest import make_run
from tests.data.corrupt_test import TOK

T = 160
SENTINELS, SYMBOLS = tuple(range(300, 360)), (360, 361, 362)  # the arrays' contract knows no vocabulary


class Wide(tokenizers.Bytes):
  """Bytes with a hundred ids that no text gives."""

  def __init__(self):
    super().__init__()
    self.vocab_size = 400


WIDE = Wide()
TASKS = {
  "span": SpanCorruption(sentinel_ids=SENTINELS),
  "dense": SpanCorruption(span_rate=0.5, span_mean=1.5, sentinel_ids=SENTINELS),
  "ul2": Ul2(sentinel_ids=SENTINELS, mode_ids=SYMBOLS),
  "fim": Fim(fim_rate=0.7, symbol_ids=SYMBOLS),
  "prefix": PrefixLm(),
}


def make_rows(task, seed):
  """Rows of documents (with bos) and pieces (without) as the loader gives them, in the room that the task asks for."""
  rng = np.random.default_rng(seed)
  R = 5
  tokens, targets, segments = (np.zeros((R, T), np.int32) for _ in range(3))
  sequence, offset = np.zeros((R, T), np.int64), np.zeros((R, T), np.int64)
  documents = {}
  for row in range(R - 1):  # the last is empty
    at, room = 0, T
    for number in range(1, 9):
      size = int(rng.integers(1, 60))
      room -= int(task.row_cost(np.array([size]))[0])
      if room < 0:
        break
      whole = rng.integers(5, 261, size + 1)
      if rng.random() < 0.5:
        whole[0] = WIDE.bos_id
      whole[-1] = rng.choice([whole[-1], WIDE.eos_id])
      where = slice(at, at + size)
      tokens[row, where], targets[row, where], segments[row, where] = whole[:-1], whole[1:], number
      sequence[row, where], offset[row, where] = seed * 100 + row * 10 + number, np.arange(size)
      documents[row, number] = whole.tolist()
      at += size
  noise = corrupt.Noise(seed, rng.integers(0, 9, R), sequence, offset)
  return {"tokens": tokens, "targets": targets, "segment_ids": segments}, noise, documents


def corrupted(name, seed):
  task = TASKS[name]
  rows, noise, documents = make_rows(task, seed)
  out = rows | task.corrupt(rows, noise, WIDE, T)
  out.setdefault("prefix", np.zeros((5, T), int))
  found = {}
  for row, number in documents:
    mine = out["segment_ids"][row] == number
    found[row, number] = {k: out[k][row][mine].tolist() for k in ("tokens", "targets", "weights", "prefix")}
    if "positions" in out:
      assert out["positions"][row][mine].tolist() == list(range(mine.sum()))
  empty = out["segment_ids"] == 0
  assert not any(out[k][empty].any() for k in ("tokens", "targets", "weights", "prefix"))
  first = {
    key: np.flatnonzero((rows["segment_ids"] == key[1]).ravel() & (np.arange(5 * T) // T == key[0])) for key in documents
  }
  return documents, found, noise, first


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(TASKS)))
def test_inputs_and_targets_are_one_sequence_and_the_prefix_ends_at_the_first_target(seed, name):
  documents, found, _, _ = corrupted(name, seed)
  for key in documents:
    one = found[key]
    assert one["targets"][:-1] == one["tokens"][1:]
    assert one["weights"][-1] == 1
    assert len(one["tokens"]) <= TASKS[name].row_cost(np.array([len(documents[key]) - 1]))[0]
    if name != "fim":
      assert one["weights"] == sorted(one["weights"])
      assert one["prefix"] == [1, *(1 - int(w) for w in one["weights"][:-1])]


def spans_of(length, hidden, spans, bits):
  """T5's `random_spans_noise_mask` on one example: both halves cut at the places of the smallest noise."""

  def sizes(first, stop):
    cuts = sorted(sorted(range(first + 1, stop), key=lambda i: bits[i])[: spans - 1])
    return np.diff([first, *cuts, stop]).tolist()

  mask = []
  for kept, gone in zip(sizes(hidden, length), sizes(0, hidden), strict=True):
    mask += [0] * kept + [1] * gone
  return mask


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["span", "dense", "ul2"]))
def test_denoising_equals_the_reference_and_can_be_undone(seed, name):
  task = TASKS[name]
  documents, found, noise, first = corrupted(name, seed)
  for key, whole in documents.items():
    bos = [WIDE.bos_id] if whole[0] == WIDE.bos_id else []
    text, at = whole[len(bos) : -1], first[key]
    denoiser = task.denoisers[int(noise.uniform(5, at[:1])[0] * len(task.denoisers))]
    hidden, spans = (int(x[0]) for x in rewrite.num_spans(np.array([len(text)]), denoiser.rate, denoiser.mean))
    mask = spans_of(len(text), hidden, spans, noise.bits(4, at)[len(bos) :].tolist()) if spans else [0] * len(text)
    assert sum(mask) == hidden == (min(max(int(denoiser.rate * len(text) + 0.5), 1), len(text) - 1) if len(text) > 1 else 0)
    shown, predicted, number = [], [], -1
    for i, (token, gone) in enumerate(zip(text, mask, strict=True)):
      if gone and not (i and mask[i - 1]):
        number += 1
        shown.append(SENTINELS[number])
        predicted.append(SENTINELS[number])
      (predicted if gone else shown).append(token)
    mode = [SYMBOLS[denoiser.mode]] if denoiser.mode >= 0 else []
    expected = [*bos, *mode, *shown, *predicted, WIDE.eos_id]
    assert [*found[key]["tokens"], found[key]["targets"][-1]] == expected
    assert sum(found[key]["weights"]) == len(predicted) + 1
    parts = np.split(predicted, [i for i, token in enumerate(predicted) if token in SENTINELS])[1:]
    restored = [token for shown_token in shown for token in (
      parts[SENTINELS.index(shown_token)][1:].tolist() if shown_token in SENTINELS else [shown_token])]  # fmt: skip
    assert restored == text


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_middle_is_filled_in(seed):
  documents, found, noise, first = corrupted("fim", seed)
  pre, suf, mid = SYMBOLS
  for key, whole in documents.items():
    bos = [WIDE.bos_id] if whole[0] == WIDE.bos_id else []
    text, head = whole[len(bos) : -1], first[key][:1]
    kind = noise.uniform(5, head)[0]
    low, high = sorted(int(noise.uniform(draw, head)[0] * (len(text) + 1)) for draw in (6, 7))
    prefix, middle, suffix = text[:low], text[low:high], text[high:]
    expected = whole
    if kind < 0.7:
      expected = [*bos, pre, *prefix, suf, *suffix, mid, *middle, WIDE.eos_id]
    if kind < 0.35:
      expected = [*bos, pre, suf, *suffix, mid, *prefix, *middle, WIDE.eos_id]
    assert [*found[key]["tokens"], found[key]["targets"][-1]] == expected
    assert all(found[key]["weights"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(TASKS)))
def test_a_row_is_rewritten_alike_alone(seed, name):
  task = TASKS[name]
  rows, noise, _ = make_rows(task, seed)
  whole = task.corrupt(rows, noise, WIDE, T)
  alone = corrupt.Noise(noise.seed, *(x[2:3] for x in (noise.epoch_R, noise.sequence_RT, noise.offset_RT)))
  for key, values in task.corrupt({k: v[2:3] for k, v in rows.items()}, alone, WIDE, T).items():
    assert (values == whole[key][2:3]).all()


def test_prefixes_have_every_length_alike():
  rows = {name: np.ones((2000, 10), np.int32) for name in ("tokens", "targets", "segment_ids")}
  noise = corrupt.Noise(
    0, np.zeros(2000), np.arange(2000)[:, None] + np.zeros((1, 10), int), np.arange(10)[None] * np.ones((2000, 1), int)
  )
  lengths = PrefixLm().corrupt(rows, noise, WIDE, 10)["prefix"].sum(1)
  assert np.bincount(lengths, minlength=11)[1:] / 2000 == pytest.approx(0.1, abs=0.03)


def test_the_sequential_denoiser_hides_the_end():
  hidden, spans = rewrite.num_spans(np.array([40]), DENOISERS[2].rate, DENOISERS[2].mean)
  assert (hidden.tolist(), spans.tolist()) == ([10], [1])


def test_symbols_come_from_the_vocabulary_and_their_lack_is_one_line(tmp_path):
  texts = tuple(f"the quick brown fox jumps over the lazy dog {i} times\n" for i in range(300))
  names = [*(f"<extra_id_{n}>" for n in range(9)), "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "[R]", "[S]", "[X]"]
  tokenizers.train(texts, str(tmp_path / "with.model"), 330, names)
  tokenizers.train(texts, str(tmp_path / "without.model"), 330)
  tok = tokenizers.load(str(tmp_path / "with.model"))
  assert [tok.piece(tok.find(name)) for name in names] == names
  assert not set(tok.encode("".join(names))) & {tok.find(name) for name in names}
  for task in (SpanCorruption(), Ul2(), Fim()):
    task.check(tok, 64)
    with pytest.raises(ConfigError, match=r"task\.\w+_ids: \d+ symbols are needed, there are 0; .*--extra_symbols"):
      task.check(tokenizers.load(str(tmp_path / "without.model")), 64)
  with pytest.raises(ConfigError, match="task.sentinel_ids: 23 symbols are needed, there are 9"):
    SpanCorruption().check(tok, 512)


def test_ids_that_cannot_be_symbols_are_refused_before_a_device_computes():
  for ids in ((261, 6), (6, 6), (TOK.eos_id, 6)):
    with pytest.raises(ConfigError, match=r"task\.sentinel_ids=.*accepted are different ids below 261"):
      make_run("span_corruption", task={"name": "span_corruption", "sentinel_ids": ids})


def test_extra_symbols_that_are_specials_already_are_refused(tmp_path):
  with pytest.raises(ConfigError, match="extra_symbols='<pad>'"):
    tokenizers.train(("a",), str(tmp_path / "x.model"), 300, ["<pad>"])


def test_a_model_without_symbols_finds_none(tmp_path):
  model = io.BytesIO()
  lines = [f"the fox jumps over the dog {i} times" for i in range(300)]
  sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, vocab_size=40, minloglevel=2)
  (tmp_path / "x.model").write_bytes(model.getvalue())
  assert tokenizers.load(str(tmp_path / "x.model")).find("<extra_id_0>") is None
  assert TOK.find("<s>") is None


def test_bits_per_byte_are_of_whole_texts_only(tmp_path):
  for task, whole in (("prefix_lm", False), ("fim", True)):
    metrics = train.train(make_run(task, total_steps=1), tmp_path / task)["metrics"]
    assert ("eval/validation/bits_per_byte" in metrics) == whole


def test_a_range_of_symbols_is_written_short():
  from tools.train_tokenizer import _symbols

  assert _symbols("<fim_prefix>,<extra_id_9..11>") == ["<fim_prefix>", "<extra_id_9>", "<extra_id_10>", "<extra_id_11>"]
  assert _symbols("") == []
