"""Masking of words, spans and n-grams: never over the bound, whole, from the noise alone, equal to a one-example reference."""

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import corrupt, store
from lm.data import tokenizer as tokenizers
from lm.data.loader import Loader, StreamData
from lm.data.sources.memory import Memory
from lm.tasks.mlm import UNITS, Mlm
from tests.data.corrupt_test import TOK, make_rows
from tests.data.hf_tokenizer_test import write_files

LENGTHS = {unit: lengths for unit, lengths in UNITS.items() if lengths is not None}


def make_words(seed):
  rng = np.random.default_rng(seed)
  tokens, segments, noise = make_rows(rng)
  eligible = (segments > 0) & ~np.isin(tokens, TOK.special_ids)
  return tokens, eligible, rng.random(tokens.shape) < 0.6, segments, noise


def reference(eligible, starts, segments, rate, noise, lengths):
  """Of one row: spans in the order of their noise, their words from the left, each if it still fits."""
  priority, uniform = noise.bits(0)[0].tolist(), noise.uniform(3)[0].tolist()
  chosen, origin = np.zeros(len(eligible), bool), {}
  for segment in sorted(set(segments) - {0}):
    words, run = [], 0  # (positions, run of words that stand side by side)
    for t in np.flatnonzero((segments == segment) & eligible).tolist():
      side_by_side = bool(words) and words[-1][0][-1] == t - 1
      run += not side_by_side
      if starts[t] or not side_by_side:
        words.append(([], run))
      words[-1][0].append(t)
    count = sum(len(word) for word, _ in words)
    room = min(max(int(np.floor(rate * count + 0.5)), 1), count)
    for i in sorted(range(len(words)), key=lambda i: priority[words[i][0][0]]):
      reach = bisect.bisect_right(lengths.tolist(), uniform[words[i][0][0]]) + 1
      for word, where in words[i : i + reach]:
        if where == words[i][1] and word[0] not in origin:
          origin |= dict.fromkeys(word, words[i][0][0])
          if len(word) <= room:
            room -= len(word)
            chosen[word] = True
  return chosen, origin


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.9), st.sampled_from(sorted(LENGTHS)))
def test_choice_equals_the_reference(seed, rate, unit):
  _, eligible, starts, segments, noise = make_words(seed)
  chosen, origin = corrupt.choose_words(eligible, starts, segments, rate, noise, LENGTHS[unit])
  for row in range(len(chosen)):
    alone = corrupt.Noise(noise.seed, *(x[row : row + 1] for x in (noise.epoch_R, noise.sequence_RT, noise.offset_RT)))
    expected, origins = reference(eligible[row], starts[row], segments[row], rate, alone, LENGTHS[unit])
    assert chosen[row].tolist() == expected.tolist()
    assert all(origin[row, t] == row * 40 + origins[t] for t in np.flatnonzero(chosen[row]))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.9), st.sampled_from(sorted(LENGTHS)))
def test_words_are_whole_within_the_bound_and_leave_no_room_for_another(seed, rate, unit):
  _, eligible, starts, segments, noise = make_words(seed)
  chosen, _ = corrupt.choose_words(eligible, starts, segments, rate, noise, LENGTHS[unit])
  assert not (chosen & ~eligible).any()
  inside = eligible[:, 1:] & eligible[:, :-1] & (segments[:, 1:] == segments[:, :-1]) & ~starts[:, 1:]
  assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()
  for row in range(len(chosen)):
    for segment in (1, 2):
      mine = eligible[row] & (segments[row] == segment)
      room = corrupt.num_chosen(np.array([mine.sum()]), rate)[0] - (chosen[row] & mine).sum()
      single = [t for t in np.flatnonzero(mine & ~chosen[row]) if (t == 0 or not mine[t - 1] or starts[row, t])
                and (t == 39 or not mine[t + 1] or starts[row, t + 1])]  # fmt: skip
      assert room >= 0
      assert room == 0 or not single


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9), st.sampled_from(sorted(UNITS)), st.floats(0, 1), st.floats(0, 1))
def test_the_task_never_predicts_or_writes_a_special_and_can_be_undone(seed, rate, unit, first, second):
  tokens, _, _, segments, noise = make_words(seed)
  task = Mlm(rate, mask_share=first, random_share=(1 - first) * second, unit=unit)
  out = task.corrupt({"tokens": tokens, "segment_ids": segments}, noise, TOK, 40)
  for row in range(len(tokens)):
    positions, labels = (out[name][row][out["weights"][row] > 0] for name in ("masked_positions", "labels"))
    assert not np.isin(labels, TOK.special_ids).any()
    shown = out["tokens"][row][positions]
    assert not np.isin(shown[shown != TOK.mask_id], TOK.special_ids).any()
    restored = out["tokens"][row].copy()
    restored[positions] = labels
    assert (restored == tokens[row]).all()


def test_lengths_are_the_published_ones():
  mean = lambda lengths: (1 - np.concatenate([[0], lengths[:-1]])).sum()
  assert mean(corrupt.SPANS) == pytest.approx(3.8, abs=0.01)
  assert len(corrupt.SPANS) == 10
  assert corrupt.NGRAMS.tolist() == pytest.approx([6 / 11, 9 / 11, 1])
  T = 400_000  # one word per token, so few chosen that spans hardly meet: their mean length is seen
  rows = np.ones((1, T), int)
  noise = corrupt.Noise(0, np.zeros(1), rows, np.arange(T)[None])
  chosen, origin = corrupt.choose_words(rows > 0, rows > 0, rows, 0.01, noise, corrupt.SPANS)
  assert chosen.sum() == T // 100
  assert chosen.sum() / len(np.unique(origin[chosen])) == pytest.approx(3.8, abs=0.25)


def test_a_span_shows_one_kind_of_replacement():
  rows = np.full((1, 2000), 9)
  noise = corrupt.Noise(0, np.zeros(1), rows, np.arange(2000)[None])
  chosen, origin = corrupt.choose_words(rows > 0, rows > 0, rows // 9, 0.3, noise, corrupt.SPANS)
  masked = corrupt.mask_tokens(rows, chosen, noise, TOK, (0.5, 0.0), origin)
  for begin in np.unique(origin[chosen]):
    assert len(np.unique(masked[chosen & (origin == begin)])) == 1
  assert len(np.unique(masked[chosen])) == 2


@pytest.mark.parametrize(
  ("kind", "text", "words"),
  [
    ("bert", "the listreads. files", ["the", "listreads", ".", "files"]),
    ("gpt2", "the sorting, list\n", ["the", "▁sorting", ",", "▁list", "<0x0A>"]),
    ("bytes", "the list,é 中文", ["the", "▁list", ",<0xC3><0xA9>", "▁", "<0xE4><0xB8><0xAD>", "<0xE6><0x96><0x87>"]),
  ],
)
def test_words_of_tokenizers(kind, text, words, tmp_path):
  tok = TOK if kind == "bytes" else tokenizers.load(str(write_files(tmp_path, kind)))
  found = []
  for i in tok.encode(text):
    if tok.starts_word[i] or not found:
      found.append("")
    found[-1] += tok.piece(i).removeprefix("##")
  assert found == words
  assert tok.starts_word.shape == (tok.vocab_size,)


def test_segmented_chinese_is_masked_by_its_words(tmp_path):
  text = "使用/语言/模型/来/预测/下/一个/词"
  task = Mlm(0.5, 1.0, 0.0, unit="word", separator="/")
  (stored,) = task.prepare({"text": text}, TOK)
  assert TOK.decode(stored["tokens"]) == text.replace("/", "")
  assert stored["starts"].tolist() == [1, *[n == 0 for word in text.split("/") for n in range(3 * len(word))], 1]
  data = store.build(Memory(texts=(text,)), TOK, task, tmp_path)
  loader = Loader([StreamData("s", "s", task, data, TOK)], batch_size=4, seq_len=48)
  spans = [TOK.encode(word) for word in text.split("/")]
  for step in range(5):
    batch = loader.batch(step)
    for row in range(4):
      shown, at = batch["inputs"]["tokens"][row], 1
      for span in spans:
        hidden = shown[at : at + len(span)] == TOK.mask_id
        assert hidden.all() or not hidden.any()
        at += len(span)
  assert (batch["inputs"]["tokens"] == TOK.mask_id).any(1).all()


def test_segmented_chinese_in_the_vocabulary_of_bert(data_dir):
  tok = tokenizers.load(str(data_dir / "tokenizers" / "bert-base-chinese"))
  (stored,) = Mlm(unit="word", separator=" ").prepare({"text": "使用 语言 模型 predicting 2024 年"}, tok)
  words = "".join(("|" if start else "") + tok.piece(int(i)) for i, start in zip(*stored.values(), strict=True))
  assert words == "|[CLS]|使用|语言|模型|pre##di##ct##ing|202##4|年|[SEP]"
  assert tok.starts_word[tok.encode("语言 predicting")].tolist() == [True, True, True, False, False, False]


def test_the_rate_and_the_unit_leave_the_store_as_it_is(tmp_path):
  paths = {
    store.build(Memory(texts=("one two",)), TOK, Mlm(rate, unit=unit), tmp_path).path for rate in (0.1, 0.4) for unit in UNITS
  }
  assert len(paths) == 1


@pytest.mark.parametrize("options", [{"unit": "letter"}, {"separator": " "}])
def test_bad_options_are_one_line(options):
  (name,) = options
  with pytest.raises(ValueError, match=rf"task\.{name}="):
    Mlm(**options)
