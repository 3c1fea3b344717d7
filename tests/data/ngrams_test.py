"""Words and n-grams of many texts at once: equal to a plain reference on one text, in any script."""

import unicodedata

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from lm.data import ngrams
from lm.data.ngrams import hash_spans, split_words

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("ab 1-.é你好ไทย\n"), max_size=30)


def words(text: str) -> list[str]:
  """The reference: one text, one character after the other."""
  found, open_word = [], False
  for char in unicodedata.normalize("NFKC", text):
    is_inside = unicodedata.category(char)[0] in "LMN"
    is_alone = any(first <= ord(char) <= last for first, last in ngrams.UNSPACED)
    folded = char.casefold() if len(char.casefold()) == 1 else char
    if is_inside and open_word and not is_alone:
      found[-1] += folded
    elif is_inside:
      found.append(folded)
    open_word = is_inside and not is_alone
  return found


@given(st.lists(TEXT, max_size=5))
@example(["Ab-c 12", "", "你好 Ｗorld", "é é"])
def test_words_are_those_of_each_text(texts):
  found = split_words(texts)
  expected = [words(text) for text in texts]
  assert found.counts.tolist() == [len(each) for each in expected]
  flat = [word for each in expected for word in each]
  assert (found.hash_W[:, None] == found.hash_W).tolist() == [[a == b for b in flat] for a in flat]
  folded = [words(found.excerpt(i, 1)) for i in range(len(flat))]
  assert folded == [[word] for word in flat]


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=6), max_size=4), st.integers(1, 4), st.booleans())
def test_ngrams_stay_within_their_text(texts, n, short):
  found = split_words([" ".join(each) for each in texts])
  hashes, first = found.ngrams(n, short)
  expected = []
  for i, text in enumerate(texts):
    grams = [tuple(text[j : j + n]) for j in range(len(text) - n + 1)] or [tuple(text)] * (short and bool(text))
    expected += [(i, gram) for gram in grams]
  assert found.text_of(first).tolist() == [i for i, _ in expected]
  same = [[a == b for _, b in expected] for _, a in expected]
  assert (hashes[:, None] == hashes).tolist() == same


def test_an_excerpt_is_the_text_as_written():
  found = split_words(["One, (two)!", "Three four"])
  assert found.excerpt(0, 2) == "One, (two"
  assert found.excerpt(2, 2) == "Three four"


def test_a_script_without_blanks_is_read_by_characters():
  assert split_words(["我爱你", "私は猫", "ไทย", "사랑해 너"]).counts.tolist() == [3, 3, 3, 2]


def test_hashes_differ_where_values_or_their_order_do():
  values = np.random.default_rng(0).integers(0, 2, 4000)
  start = np.arange(3900)
  hashes = hash_spans(values, start, start + 16)
  spans = [values[i : i + 16].tobytes() for i in start]
  assert len(set(hashes.tolist())) == len(set(spans))
  assert len({h >> 48 for h in hashes.tolist()}) > 0.9 * len(set(spans)), "the upper bits alone nearly tell them apart"
