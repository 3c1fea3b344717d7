"""Tags of words: what rows hold, whatever the scheme of the data, when a row is cut; what is said of a text."""

import jax
import numpy as np
import pytest

import lm
from lm import predictor, train
from lm.config import ConfigError
from lm.data import store
from lm.data.loader import EvalLoader, StreamData
from lm.data.sources.memory import Memory
from lm.data.tokenizer import Bytes
from lm.tasks.tag import Tag
from tests.conftest import TAGS, TEXTS, make_run

EXAMPLE = {"tokens": ["New", "York", "is", "big"], "tags": ["B-LOC", "I-LOC", "O", "O"], "text": "New York is big"}
BIO = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")


def read_row(task, texts, tags, seq_len, tmp_path):
  """(pieces, word, label, weight) of the only row."""
  tok, source = Bytes(), Memory(texts=texts, text_tags=tags)
  stream = StreamData("s", "s", task, store.build(source, tok, task, tmp_path), tok)
  (batch, _), *_ = EvalLoader(stream, batch_size=1, seq_len=seq_len)
  pieces = [
    tok.piece(i) for i, real in zip(batch["inputs"]["tokens"][0], batch["inputs"]["segment_ids"][0], strict=True) if real
  ]
  return pieces, *(batch["s"][name][0] for name in ("word", "label", "weights"))


def test_the_first_piece_of_a_word_has_its_tag(tmp_path):
  task = Tag(tags=BIO)
  pieces, word, label, weights = read_row(task, (EXAMPLE["text"],), (" ".join(EXAMPLE["tags"]),), 32, tmp_path)
  assert pieces == ["<s>", *EXAMPLE["text"].replace(" ", "▁"), "</s>"]
  starts = [place + 1 for place in (0, 4, 9, 12)]
  assert np.flatnonzero(word).tolist() == np.flatnonzero(weights).tolist() == starts
  assert word[starts].tolist() == [1, 2, 3, 4]
  assert [task.classes[i] for i in label[starts]] == EXAMPLE["tags"]
  assert not label[weights == 0].any()


@pytest.mark.parametrize(("room", "stride"), [(3, 0), (4, 1), (6, 3), (9, 7), (16, 0), (17, 0)])
def test_a_word_of_a_long_text_is_in_the_window_where_it_has_most_context(room, stride):
  task, tok, text = Tag(tags=BIO, stride=stride).fitted(room), Bytes(), EXAMPLE["text"]
  found = task.prepare(EXAMPLE, tok)
  assert [row["window"] for row in found] == list(range(len(found)))
  rows = [[tok.piece(i).replace("▁", " ") for i in row["tokens"]] for row in found]
  assert all(row[:2] == ["<s>", "</s>"] and len(row) <= room for row in rows)
  starts, at = [], 0  # where each window begins: `stride` behind the one before, the last one at the text's end
  for row in rows:
    at = min(at, len(text) - (room - 2)) if len(text) > room - 2 else 0
    assert "".join(row[2:]) == text[at : at + room - 2]
    starts.append(at)
    at += stride or max((room - 2) // 2, 1)
  seen = [(int(number), i, place - 2) for i, row in enumerate(found) for place, number in enumerate(row["word"]) if number]
  assert sorted(number for number, _, _ in seen) == [1, 2, 3, 4]
  for number, i, place in seen:
    assert starts[i] + place == (0, 4, 9, 12)[number - 1]
    context = lambda start, at=starts[i] + place: min(at - start, start + room - 3 - at)
    assert context(starts[i]) == max(map(context, starts))
    assert task.classes[found[i]["tag"][place + 2] - 1] == EXAMPLE["tags"][number - 1]


def test_the_tags_of_windows_are_joined():
  task = Tag(tags=BIO)
  arrays = {"word": [[0, 1, 0, 2], [4, 0, 0, 0], [0, 0, 2, 0]], "tag": [[9, 1, 9, 2], [3, 9, 9, 9], [9, 9, 0, 9]]}
  arrays = {name: np.asarray(values) for name, values in arrays.items()} | {"score": np.full((3, 4), 0.5, np.float32)}
  found = task.join(arrays, np.asarray([0, 0, 1]))
  assert found["tag"].tolist() == [[1, 2, -1, 3], [-1, 0, -1, -1]]
  described = task.describe_predictions(found, Bytes())
  names = [task.classes[i] for i in range(4)]
  assert [said["tags"] for said in described] == [[names[1], names[2], "O", names[3]], ["O", "O"]]


def test_a_window_that_no_row_holds_and_a_step_that_leaves_text_out_are_refused():
  with pytest.raises(ConfigError, match=r"task.window=33: a row of the run holds 32 tokens \(config.seq_len\)"):
    make_run("tag", seq_len=32, task={"name": "tag", "window": 33})
  with pytest.raises(ConfigError, match="task.stride=31: a window may hold 30 tokens of text, a larger step leaves some out"):
    make_run("tag", seq_len=32, task={"name": "tag", "stride": 31})
  with pytest.raises(ConfigError, match="config.seq_len: rows of 2 tokens have no room for text beside 2 others"):
    make_run("tag", seq_len=22, peft={"name": "prompt", "num_virtual_tokens": 20})


@pytest.mark.parametrize(
  "tags", [["B-LOC", "I-LOC", "O", "B-PER"], ["I-LOC", "I-LOC", "O", "I-PER"], ["B-LOC", "E-LOC", "O", "S-PER"]]
)
@pytest.mark.parametrize(
  ("scheme", "expected"), [("bio", ["B-LOC", "I-LOC", "O", "B-PER"]), ("bioes", ["B-LOC", "E-LOC", "O", "S-PER"])]
)
def test_any_scheme_of_the_data_is_written_in_the_one_that_is_learned(tags, scheme, expected):
  task = Tag(tags=tuple(tags), scheme=scheme)
  assert task.rewrite(tags, tags) == expected
  assert task.classes[0] == "O" and len(task.classes) == 1 + 2 * {"bio": 2, "bioes": 4}[scheme]
  (row,) = task.prepare({**EXAMPLE, "tags": tags}, Bytes())
  assert [task.classes[i - 1] for i in row["tag"] if i] == expected


def test_the_outputs_of_a_head_made_elsewhere_keep_their_order():
  task = Tag.of_outputs(("B-LOC", "O", "I-LOC"))
  assert task.classes == ("B-LOC", "O", "I-LOC") and task.scheme == "bio"
  described = task.describe_predictions({"tag": np.asarray([[0, 2, 1]]), "score": np.ones((1, 3), np.float32)}, Bytes())
  assert described == [{"tags": ["B-LOC", "I-LOC", "O"], "entities": [{"type": "LOC", "words": [0, 2], "score": 1.0}]}]
  assert [Tag.of_outputs(tags).scheme for tags in (("O", "S-x"), ("NOUN", "O"), ("B-x",))] == ["bioes", "plain", "plain"]
  with pytest.raises(ConfigError, match="tag 'I-LOC': is none of task.outputs=O,B-LOC"):
    Tag.of_outputs(("O", "B-LOC")).prepare(EXAMPLE, Bytes())


def test_plain_tags_are_learned_as_they_are():
  task = Tag(tags=("DET", "NOUN", "VERB"), scheme="plain")
  assert task.classes == ("DET", "NOUN", "VERB")
  assert task.rewrite(["VERB", "DET"], ["go", "the"]) == ["VERB", "DET"]
  with pytest.raises(ConfigError, match="tag 'ADV': is not among the 3 tags of training: DET, NOUN, VERB"):
    task.rewrite(["ADV"], ["so"])


@pytest.mark.parametrize(
  ("options", "change", "message"),
  [
    ({"scheme": "iobes"}, {}, "task.scheme='iobes': accepted are bio, bioes, plain"),
    ({"words": "token"}, {}, "task.words='token': accepted are word, space, character"),
    ({"tags": ("O", "NOUN")}, {}, "tag 'NOUN': accepted are O, and B-, I-, E-, S- with a type; task.scheme=plain"),
    ({}, {"tags": ["B-LOC", "I-LOC", "O", "X-LOC"]}, "tag 'X-LOC': accepted are O, and B-"),
    ({}, {"tags": ["B-LOC", "I-LOC", "O", "B-ORG"]}, "tag 'B-ORG': its type is none of training: LOC, PER"),
    ({}, {"tags": ["O"]}, "tags: 1 for 4 tokens"),
    ({}, {"text": "York is New big"}, "tokens: do not stand in the text in their order: 'New York is big'"),
  ],
)
def test_what_cannot_be_learned_is_one_line(options, change, message):
  with pytest.raises(ValueError, match=message) as error:
    Tag(**{"tags": BIO, **options}).prepare(EXAMPLE | change, Bytes())
  assert "\n" not in str(error.value)


def test_a_bad_tag_names_its_file_and_line(tmp_path):
  files = {name: str(tmp_path / f"{name}.conll") for name in ("path", "validation", "test")}
  for file in files.values():
    (tmp_path / file).write_text("EU B-ORG\nrejects O\n\nPeter O\nBlackburn O\n")
  (tmp_path / "validation.conll").write_text("EU B-ORG\n\n\nRome B-LOC\n")
  run = make_run("tag", data={"name": "conll", **files})
  with pytest.raises(
    ConfigError, match=r"^data 'conll': .*validation.conll line 4: tag 'B-LOC': its type is none of training: ORG"
  ):
    run.load("tag", "validation")


def test_data_without_tags_is_refused():
  with pytest.raises(ConfigError, match="'tag' needs tagged sentences of 2 tags or more; data 'memory' .* has no tags"):
    make_run("tag", data={"name": "memory", "texts": TEXTS})
  with pytest.raises(ConfigError, match=r"data.text_tags\[0\]='O': has 1 tags for 2 words"):
    make_run("tag", data={"name": "memory", "texts": ("a b",), "text_tags": ("O",)})


def test_what_is_said_has_entities_with_their_places_and_texts(tmp_path):
  settings = {"optimizer": {"name": "adamw", "learning_rate": 1e-2}, "total_steps": 60, "eval_every": 60, "best_metric": ""}
  metrics = train.train(make_run("tag", **settings), tmp_path)["metrics"]
  assert metrics["eval/validation/f1"] > 0.9
  model = predictor.load(tmp_path, devices=jax.devices()[:1])
  task = model.tasks["tag"]
  long = "The file opens with number 3 . " * 9
  rows = [{"text": text, "tokens": text.split(), "tags": tags.split()} for text, tags in zip(TEXTS[:5], TAGS, strict=False)]
  *found, short, whole = model.predict([*rows, "The list sorts", long], batch_size=2)
  right = 0
  for row, said in zip(rows, found, strict=True):
    assert said["words"] == row["tokens"]
    assert len(said["tags"]) == len(row["tokens"])
    right += said["tags"] == row["tags"]
    for entity in said["entities"]:
      first, stop = entity["words"]
      assert row["text"][entity["start"] : entity["stop"]] == entity["text"]
      assert entity["text"].split() == row["tokens"][first:stop]
      assert 0 < entity["score"] <= 1
  assert right >= 3
  assert short["words"] == ["The", "list", "sorts"]
  assert len(whole["tags"]) == len(whole["words"]) == 63
  assert set(whole["tags"][-20:]) > {"O"}, "words behind a row's end have tags too"
  assert task.tags == ("B-act", "B-thing", "I-act", "O")
  assert lm.load(tmp_path).predict([]) == []
