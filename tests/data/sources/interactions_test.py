"""Users' items in order of time: histories, splits and catalogue against a plain reading, and bad rows named by their place."""

import csv
import io

import pytest

from lm.config import ConfigError
from lm.data.sources.interactions import Interactions

ITEMS = "id,title,kinds\n" + "".join(f'{i},"Film {i}",a|b{i % 2}\n' for i in range(8)) + "8,Film 0,a|b0\n"
TAKEN = [
  ("u", 3, 30),
  ("v", 1, 5),
  ("u", 0, 10),
  ("u", 8, 20),
  ("v", 2, 4),
  ("u", 5, 30),
  ("v", 4, 9),
  ("v", 6, 7),
  ("u", 1, 40),
]
OPTIONS = {"user": "who", "item": "id", "time": "when", "text": ("title", "kinds")}


def write(folder, taken=TAKEN, items=ITEMS, tags=""):
  rows = [("who", "id", "when"), *taken] if len(taken[0]) == 3 else [("who", "id", "when", "stars"), *taken]
  (folder / "taken.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
  (folder / "items.csv").write_text(items)
  (folder / "tags.csv").write_text(tags)
  return {"path": str(folder / "taken.csv"), "items_path": str(folder / "items.csv"), **OPTIONS}


def text(i):
  return f"Film {i}, a, b{i % 2}"


def test_leave_last_out_in_order_of_time_and_the_latest_first(tmp_path):
  options = write(tmp_path)
  train, validation, test = (Interactions(split, **options) for split in ("train", "validation", "test"))
  assert train.items == tuple(map(text, range(8)))  # 8 is called as 0 is
  assert [train[i] for i in range(8)] == [{"item": text(i)} for i in range(8)]
  # u: 0 8=0 3 5 1 (3 and 5 at one time, in the order of the file); v: 2 1 6 4.
  examples = lambda source: [source[i] for i in range(8, len(source))]
  query = lambda *items: "; ".join(map(text, items))
  assert examples(train) == [
    {"query": query(0), "positive": text(0)},
    {"query": query(0, 0), "positive": text(3)},
    {"query": query(2), "positive": text(1)},
  ]
  assert examples(validation) == [
    {"query": query(3, 0, 0), "positive": text(5)},
    {"query": query(1, 2), "positive": text(6)},
  ]
  assert examples(test) == [
    {"query": query(5, 3, 0, 0), "positive": text(1)},
    {"query": query(6, 1, 2), "positive": text(4)},
  ]
  assert [test.known(i).tolist() for i in (8, 9, 0)] == [[0, 0, 3, 5], [2, 1, 6], []]
  assert test.taken(9) == (1, 4)
  assert train.popularity.tolist() == [2, 1, 1, 1, 0, 0, 0, 0]
  assert [validation.locate(i)["line"] for i in (8, 9)] == [7, 9]
  assert Interactions("test", **options, history=2)[8]["query"] == query(5, 3)


def test_low_values_are_left_out_and_tags_are_part_of_the_text(tmp_path):
  options = write(tmp_path, [(*row, 5 if row[1] != 3 else 2.5) for row in TAKEN], tags="id,tag\n0,x\n0,y\n0,y\n1,z\n")
  found = Interactions("test", value="stars", least=3.0, **options)
  assert found[8 + 0]["query"].count(";") == 2  # without 3, that is in the catalogue still
  tagged = Interactions(tags_path=str(tmp_path / "tags.csv"), num_tags=1, **options)
  assert tagged.items[:3] == (f"{text(0)}, y", f"{text(1)}, z", text(2))
  assert len(tagged.items) == 9  # item 8 has no tags, and another text than item 0


def test_movielens_against_a_plain_reading(data_dir):
  folder = data_dir / "ml-latest-small"
  options = {"path": str(folder / "ratings.csv"), "items_path": str(folder / "movies.csv"), "text": ("title", "genres")}
  options |= {"user": "userId", "item": "movieId", "time": "timestamp"}
  found = Interactions("validation", **options)
  read = lambda name: list(csv.DictReader(io.StringIO((folder / name).read_text(encoding="utf-8"))))
  texts = {row["movieId"]: f"{row['title'].strip()}, {row['genres'].replace('|', ', ')}" for row in read("movies.csv")}
  ratings = read("ratings.csv")
  assert found.items == tuple(dict.fromkeys(texts.values()))
  assert len(found) == len(found.items) + 610
  for i, user in enumerate(dict.fromkeys(row["userId"] for row in ratings)):
    own = sorted((row for row in ratings if row["userId"] == user), key=lambda row: int(row["timestamp"]))
    *before, expected, _ = [texts[row["movieId"]] for row in own]
    example = found[len(found.items) + i]
    assert example == {"query": "; ".join(before[-20:][::-1]), "positive": expected}
    if i == 40:
      break
  assert len(Interactions("train", **options)) == len(found.items) + len(ratings) - 3 * 610
  assert found.popularity.sum() == len(ratings) - 2 * 610


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"taken": [*TAKEN, ("u", 99, 1)]}, "taken.csv line 11: item '99' is not in .*items.csv"),
    ({"taken": [*TAKEN, ("u", 1, "now")]}, "taken.csv line 11: 'when' is no number"),
    ({"taken": [*TAKEN, ("", 1, 3)]}, "taken.csv line 11: 'who' is empty"),
    ({"taken": [*TAKEN, ("w", 1, 3), ("w", 2, 4)]}, "user 'w' has 2 items, 3 or more are needed"),
    ({"items": ITEMS + "3,Film,x\n"}, "items.csv line 11: item '3' stands there twice"),
  ],
)
def test_what_is_bad_is_one_line_or_counted(change, words, tmp_path):
  options = write(tmp_path, **change)
  with pytest.raises(ConfigError, match=rf"{words}; data.on_bad_row=skip leaves such out$") as caught:
    len(Interactions(**options))
  assert "\n" not in str(caught.value)
  kept = Interactions("test", on_bad_row="skip", **options)
  assert len(kept) == 8 + 2
  assert "left out: 1 of " in kept.describe()


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"path": ""}, "data.path='': not set"),
    ({"items_path": ""}, "data.items_path='': not set"),
    ({"history": 0}, "data.history=0: must be 1 or more"),
    ({"least": 3.0}, "data.least=3.0: no effect; data.value names no column"),
    ({"num_tags": 2}, "data.tag='tag', data.num_tags=2: no effect without data.tags_path"),
    ({"text": ()}, r"data.text=\(\): accepted are columns of data.items_path"),
    ({"on_bad_row": "drop"}, "data.on_bad_row='drop': accepted are error, skip"),
    ({"time": "date"}, "data.time='date': no such column in .*taken.csv"),
  ],
)
def test_bad_settings_are_one_line(options, words, tmp_path):
  with pytest.raises(ConfigError, match=f"^{words}"):
    len(Interactions(**write(tmp_path) | options))


def test_another_order_of_the_files_rows_is_another_fingerprint_only_where_histories_differ(tmp_path):
  before = Interactions(**write(tmp_path)).fingerprint()
  first_u = [row for row in TAKEN if row[0] == "u"] + [row for row in TAKEN if row[0] == "v"]
  assert Interactions(**write(tmp_path, first_u)).fingerprint() == before
  assert Interactions(**write(tmp_path, TAKEN[:-1] + [("u", 2, 40)])).fingerprint() != before
