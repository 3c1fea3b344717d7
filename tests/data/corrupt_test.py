"""Masking: exact counts, never a special token, independent of placement, equal to a one-example reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import corrupt
from lm.data.tokenizer import Bytes

TOK = Bytes()


def make_rows(rng, R=6, T=40):
  """Random tokens (some special) in two segments and padding, with noise of random sequences."""
  tokens = rng.integers(5, TOK.vocab_size, (R, T))
  tokens[rng.random((R, T)) < 0.1] = TOK.cls_id
  cuts = np.sort(rng.integers(0, T + 1, (R, 2)), axis=1)
  column = np.arange(T)[None, :]
  segments = np.where(column < cuts[:, :1], 1, np.where(column < cuts[:, 1:], 2, 0))
  noise = corrupt.Noise(3, np.arange(R), rng.integers(0, 99, (R, T)), np.broadcast_to(column, (R, T)))
  return tokens, segments, noise


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.9))
def test_choice_is_exact_and_equals_the_reference(seed, rate):
  tokens, segments, noise = make_rows(np.random.default_rng(seed))
  eligible = (segments > 0) & ~np.isin(tokens, TOK.special_ids)
  chosen = corrupt.choose(eligible, segments, rate, noise)
  uniform = noise.uniform(0)
  for row in range(len(tokens)):
    for segment in (1, 2):
      where = [t for t in range(tokens.shape[1]) if eligible[row, t] and segments[row, t] == segment]
      count = min(max(int(np.floor(rate * len(where) + 0.5)), 1), len(where))
      expected = sorted(sorted(where, key=lambda t, r=row: uniform[r, t])[:count])
      assert [t for t in where if chosen[row, t]] == expected
  assert not (chosen & ~eligible).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_masking_never_writes_a_special_token_and_can_be_undone(seed):
  tokens, segments, noise = make_rows(np.random.default_rng(seed))
  eligible = (segments > 0) & ~np.isin(tokens, TOK.special_ids)
  chosen = corrupt.choose(eligible, segments, 0.5, noise)
  masked = corrupt.mask_tokens(tokens, chosen, noise, TOK, (0.8, 0.1))
  assert (masked[~chosen] == tokens[~chosen]).all()
  assert not np.isin(masked[chosen & (masked != TOK.mask_id)], TOK.special_ids).any()
  positions, weights, labels = corrupt.gather(chosen, 40, tokens)
  for row in range(len(tokens)):
    counted = weights[row] > 0
    restored = masked[row].copy()
    restored[positions[row][counted]] = labels[row][counted]
    assert (restored == tokens[row]).all()


def test_shares_of_replacement():
  T = 100_000
  tokens = np.full((1, T), 9)
  noise = corrupt.Noise(0, np.zeros(1), np.zeros((1, T)), np.arange(T)[None, :])
  masked = corrupt.mask_tokens(tokens, np.ones((1, T), bool), noise, TOK, (0.8, 0.1))
  assert np.mean(masked == TOK.mask_id) == pytest.approx(0.8, abs=0.01)
  assert np.mean(masked == 9) == pytest.approx(0.1, abs=0.01)


def test_noise_follows_the_token_and_changes_with_epoch_and_seed():
  sequence, offset = np.array([[4, 4, 7]]), np.array([[0, 1, 0]])
  noise = corrupt.Noise(1, np.array([0]), sequence, offset).uniform(0)
  moved = corrupt.Noise(1, np.array([0]), sequence[:, ::-1], offset[:, ::-1]).uniform(0)
  assert (moved[:, ::-1] == noise).all()
  for other in (corrupt.Noise(1, np.array([1]), sequence, offset), corrupt.Noise(2, np.array([0]), sequence, offset)):
    assert (other.uniform(0) != noise).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_noise_at_some_positions_is_that_of_the_whole(seed):
  rng = np.random.default_rng(seed)
  _, _, noise = make_rows(rng)
  where = np.flatnonzero(rng.random((6, 40)) < 0.3)
  assert (noise.bits(1, where) == noise.bits(1).ravel()[where]).all()
  assert (noise.uniform(2, where) == noise.uniform(2).ravel()[where]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_a_row_is_masked_alike_in_any_batch_and_at_any_place(seed, shift):
  tokens, segments, noise = make_rows(np.random.default_rng(seed))
  whole = corrupt.choose(segments > 0, segments, 0.3, noise)
  alone = corrupt.Noise(noise.seed, noise.epoch_R[3:4], noise.sequence_RT[3:4], noise.offset_RT[3:4])
  assert (corrupt.choose(segments[3:4] > 0, segments[3:4], 0.3, alone) == whole[3:4]).all()
  roll = lambda x: np.roll(x, shift, axis=1)
  moved = corrupt.Noise(noise.seed, noise.epoch_R, roll(noise.sequence_RT), roll(noise.offset_RT))
  renamed = roll(np.where(segments > 0, segments + 5, 0))
  assert (corrupt.choose(renamed > 0, renamed, 0.3, moved) == roll(whole)).all()


def test_choice_does_not_depend_on_the_number_of_the_row():
  T = 64  # noise that differs only in its 50th bit and some above: a float that also holds the row's number would lose it

  class Close(corrupt.Noise):
    def bits(self, draw, where=None):
      del draw, where
      return np.broadcast_to(np.arange(T, 0, -1, dtype=np.uint64) << np.uint64(14), self.sequence_RT.shape)

  for R in (1, 3000):
    noise = Close(0, np.zeros(R, int), np.zeros((R, T), int), np.broadcast_to(np.arange(T), (R, T)))
    chosen = corrupt.choose(np.ones((R, T), bool), np.ones((R, T), int), 0.25, noise)
    assert chosen[-1].nonzero()[0].tolist() == list(range(T - 16, T))


def test_any_seed_gives_noise():
  noise = [corrupt.Noise(seed, np.zeros(2, np.int64), *np.zeros((2, 2, 3), np.int64)) for seed in (0, 2**58, 2**63 - 1)]
  assert len({tuple(each.bits(1).ravel().tolist()) for each in noise[1:]}) == 2
