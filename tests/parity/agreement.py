"""Inputs for two implementations of one model, and how far their outputs may be apart. Needs no torch."""

import numpy as np

from tests.parity.families import PAD

ABSOLUTE = 1e-4
RELATIVE = 1e-5  # of the tensor's largest value


def random_tokens(rng: np.random.Generator, *shape: int, vocab: int) -> np.ndarray:
  """Token ids [*shape] that are no special tokens."""
  return rng.integers(5, vocab, shape)


def pad(rows: list[np.ndarray], side: str = "right") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rows of different lengths -> tokens, attention mask and positions, all [B, T]; padding has position 0.

  >>> pad([np.array([7, 8, 9]), np.array([7])], "left")[0].tolist()
  [[7, 8, 9], [1, 1, 7]]
  """
  width = max(map(len, rows))
  tokens, mask, positions = (
    np.full((len(rows), width), PAD),
    np.zeros((len(rows), width), int),
    np.zeros((len(rows), width), int),
  )
  for i, row in enumerate(rows):
    there = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
    tokens[i, there], mask[i, there], positions[i, there] = row, 1, np.arange(len(row))
  return tokens, mask, positions


def distances(got: dict, expected: dict, mask_BT: np.ndarray, relative: float = RELATIVE) -> dict[str, float]:
  """How far every output is from the expected one, 1 being as far as it may: name, or layer of hidden_states -> distance.

  Only positions with a mask count. Raises AssertionError where an output is missing, has another shape or is not finite.
  """
  found = {}
  for name, want in expected.items():
    assert name in got, f"{name} is missing, there are {sorted(got)}"
    have = np.asarray(got[name])
    assert have.shape == want.shape, f"{name} has the shape {have.shape}, expected {want.shape}"
    parts = {f"{name}[{i}]": i for i in range(len(want))} if name == "hidden_states" else {name: slice(None)}
    for part, index in parts.items():
      a, b = have[index], want[index]
      if b.shape[:2] == mask_BT.shape:  # else it has one value per row
        a, b = a[mask_BT > 0], b[mask_BT > 0]
      assert np.isfinite(a).all(), f"{part} is not finite"
      apart = float(np.abs(a.astype(np.float64) - b).max())
      found[part] = max(apart / ABSOLUTE, apart / (relative * float(np.abs(b).max())))
  return found


def assert_agree(got: dict, expected: dict, mask_BT: np.ndarray, relative: float = RELATIVE) -> None:
  """Every output within 1e-4, and within `relative` of the tensor's largest value."""
  far = {part: round(distance, 2) for part, distance in distances(got, expected, mask_BT, relative).items() if distance > 1}
  assert not far, f"times what is allowed: {far}"
