"""Cuts depend on content alone: equal texts stay together, labels are known in train, rows that are added move no other."""

import random

import pytest

from lm.data.splits import cut


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_keeps_equal_texts_together_and_every_label_in_train(seed):
  rng = random.Random(seed)
  num_labels = rng.choice([2, 3, 30])
  rows = [
    ((f"text {rng.randrange(120)}",), f"l{int(rng.random() ** 3 * num_labels)}", line) for line in range(rng.randrange(1, 300))
  ]
  splits = cut(rows, ["validation", "test"])
  assert sorted(row for part in splits.values() for row in part) == sorted(rows)
  texts = [{texts for texts, *_ in part} for part in splits.values()]
  assert sum(map(len, texts)) == len(set.union(*texts))
  assert {label for _, label, _ in splits["train"]} == {label for _, label, _ in rows}
  shuffled = rng.sample(rows, len(rows))
  assert cut(shuffled, ["validation", "test"]) == splits


def test_each_label_is_cut_alike_within_chance():
  rows = [((f"{label} {i}",), label, i) for label, count in (("a", 5000), ("b", 500), ("c", 50)) for i in range(count)]
  splits = cut(rows, ["validation", "test"])
  for label, count in (("a", 5000), ("b", 500), ("c", 50)):
    held_out = [sum(row[1] == label for row in splits[name]) for name in ("validation", "test")]
    assert all(abs(number - count / 10) < 3 * (count * 0.09) ** 0.5 for number in held_out)


@pytest.mark.parametrize("seed", range(5))
def test_rows_that_are_added_move_no_other(seed):
  rng = random.Random(seed)
  rows = [((f"text {i}",), rng.choice("abc"), i) for i in range(400)]
  few, many = (cut(part, ["validation", "test"]) for part in (rng.sample(rows, 200), rows))
  assert all(len(few[name]) > 0 and set(few[name]) <= set(many[name]) for name in few)
  relabelled = cut([*rows, *((texts, "a", 0) for texts, *_ in rows)], ["validation", "test"])
  assert {name: {texts for texts, *_ in part} for name, part in relabelled.items()} == {
    name: {texts for texts, *_ in part} for name, part in many.items()
  }


def test_a_label_of_held_out_texts_only_is_trained_on_until_train_has_it():
  rows = [((f"text {i}",), "ab"[i % 2], i) for i in range(100)]
  held_out = cut(rows, ["validation", "test"])["test"][0]
  alone = [row for row in rows if row != held_out] + [(held_out[0], "new", 0)]
  assert (held_out[0], "new", 0) in cut(alone, ["validation", "test"])["train"]
  texts = next(texts for texts, *_ in cut(rows, ["validation", "test"])["train"])
  assert (held_out[0], "new", 0) in cut([*alone, (texts, "new", 0)], ["validation", "test"])["test"]


@pytest.mark.parametrize("seed", range(20))
def test_ten_rows_give_every_split_one(seed):
  rows = [((f"text {seed} {i}",), "ab"[i % 2], i) for i in range(10)]
  splits = cut(rows, ["validation", "test"])
  assert all(splits.values()) and {label for _, label, _ in splits["train"]} == {"a", "b"}
