"""MinHash signatures of sets and an index that finds sets that are nearly equal (Broder 1997; banding: Indyk, Motwani 1998).

The share of places at which two signatures agree is an unbiased estimate of the sets' Jaccard similarity; its standard
deviation is sqrt(J (1 - J) / P), 0.035 at J = 0.8 with P = 128 permutations.
"""

import numpy as np

from lm.data.corrupt import splitmix

FOUND = 0.99  # of the pairs at the threshold must become candidates


def signatures(hash_S: np.ndarray, first: np.ndarray, num_permutations: int, seed: int) -> np.ndarray:
  """uint32 [N, P] signatures of N sets, none empty; set i is hash_S[first[i] : first[i + 1]], the last one to the end."""
  draws = splitmix(np.arange(2 * num_permutations, dtype=np.uint64) + np.uint64(seed << 32) + np.uint64(1))
  factors, shifts = draws.astype(np.uint32).reshape(2, -1)
  elements = (hash_S >> np.uint64(32)).astype(np.uint32)
  found = np.empty((len(first), num_permutations), np.uint32)
  with np.errstate(over="ignore"):
    # x -> factor * x + shift modulo 2^32 is a permutation where the factor is odd.
    for i, (factor, shift) in enumerate(zip(factors | np.uint32(1), shifts, strict=True)):
      found[:, i] = np.minimum.reduceat(elements * factor + shift, first) if len(first) else 0
  return found


def rows_per_band(threshold: float, num_permutations: int) -> int:
  """Rows of a band: as many as still make FOUND of the pairs at the threshold candidates; more rows, fewer false ones.

  A pair of similarity J agrees in a whole band of r rows with probability J^r. 0.8 of 128 -> 6, which makes 21 bands.
  """
  found = lambda rows: 1 - (1 - threshold**rows) ** (num_permutations // rows)
  return max((rows for rows in range(1, num_permutations + 1) if found(rows) >= FOUND), default=1)


class Index:
  """Signatures of sets of which no two are near each other. P = 128: about 1 kB for each, 2 while it grows.

  threshold: of the estimated similarity, from which on two sets are near. rows: of a band.
  """

  def __init__(self, threshold: float, num_permutations: int):
    self._threshold, self.rows = threshold, rows_per_band(threshold, num_permutations)
    self._signatures = np.empty((0, num_permutations), np.uint32)  # room for more than there are
    self._size = 0
    self._places = SortedRuns()

  def __len__(self) -> int:
    return self._size

  def add(self, signature_NP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes in every set that is near none that is there, in their order.

    Returns:
      (near, similarity), [N] each: the number of the set it is nearest to, counted in the order in which they were taken
      in, and the estimate for the two; -1 and 0 of one that was taken in.
    """
    keys = self._keys(signature_NP)
    near, similarity = self._search(signature_NP, keys)
    recent: dict[int, list[int]] = {}  # taken in now, by the keys of their bands
    taken: list[int] = []
    for i, bands in enumerate(keys.tolist()):
      candidates = sorted({row for key in bands for row in recent.get(key, ())})
      if candidates:
        estimates = (signature_NP[[taken[row] for row in candidates]] == signature_NP[i]).mean(1)
        best = int(estimates.argmax())
        if estimates[best] >= self._threshold and estimates[best] > similarity[i]:
          near[i], similarity[i] = self._size + candidates[best], estimates[best]
      if near[i] < 0:
        for key in bands:
          recent.setdefault(key, []).append(len(taken))
        taken.append(i)
    self._append(signature_NP[taken], keys[taken])
    return near, similarity

  def _search(self, signature_NP: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `add` returns it, of the sets that were there before."""
    place, number = self._places.find(keys.ravel())
    pairs = np.unique(np.stack([place // keys.shape[1], number]), axis=1)
    near, similarity = np.full(len(keys), -1), np.zeros(len(keys))
    for first in range(0, pairs.shape[1], 1 << 14):
      new, old = pairs[:, first : first + (1 << 14)]
      estimates = (signature_NP[new] == self._signatures[old]).mean(1)
      for i in np.flatnonzero(estimates >= self._threshold):
        if estimates[i] > similarity[new[i]]:
          near[new[i]], similarity[new[i]] = old[i], estimates[i]
    return near, similarity

  def _append(self, signature_NP: np.ndarray, keys: np.ndarray) -> None:
    numbers = np.arange(self._size, self._size + len(keys), dtype=np.uint32)
    self._places.add(keys.ravel(), np.repeat(numbers, keys.shape[1]))
    self._size += len(keys)
    if self._size > len(self._signatures):
      room = np.empty((max(self._size, 2 * len(self._signatures)), signature_NP.shape[1]), np.uint32)
      room[: len(self._signatures)] = self._signatures
      self._signatures = room
    self._signatures[self._size - len(keys) : self._size] = signature_NP

  def _keys(self, signature_NP: np.ndarray) -> np.ndarray:
    """uint64 [N, bands]: a hash of the rows of each band and of its number."""
    num_bands = signature_NP.shape[1] // self.rows
    bands = signature_NP[:, : num_bands * self.rows].reshape(-1, num_bands, self.rows)
    keys = np.broadcast_to(splitmix(np.arange(1, num_bands + 1, dtype=np.uint64)), bands.shape[:2])
    for row in range(self.rows):
      keys = splitmix(keys ^ bands[:, :, row])
    return keys


class SortedRuns:
  """Numbers by uint64 keys, in sorted arrays that are merged as they grow (O'Neil et al. 1996): 12 bytes a key."""

  def __init__(self):
    self._runs: list[tuple[np.ndarray, np.ndarray]] = []  # (keys, numbers), the longest first

  def add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
    """Takes in keys, which need not be new, and the number of each."""
    while self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
      theirs = self._runs.pop()
      keys, numbers = np.concatenate([theirs[0], keys]), np.concatenate([theirs[1], numbers])
    order = np.argsort(keys, kind="stable")
    if len(keys):
      self._runs.append((keys[order], numbers[order]))

  def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `keys`, number) of every number that has one of the keys."""
    found = [(np.zeros(0, np.int64), np.zeros(0, np.uint32))]
    order = np.argsort(keys)  # neighbours are near each other in memory: four times as fast
    wanted = keys[order]
    for ours, numbers in self._runs:
      first = np.searchsorted(ours, wanted)
      hits = np.flatnonzero(ours[np.minimum(first, len(ours) - 1)] == wanted)
      counts = np.searchsorted(ours, wanted[hits], "right") - first[hits]
      place = np.repeat(hits, counts)
      within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
      found.append((order[place], numbers[first[place] + within]))
    places, numbers = zip(*found, strict=True)
    return np.concatenate(places), np.concatenate(numbers)
