"""What a person is shown before training: lengths, share that is cut, examples with visible specials and labels."""

from lm.data import store
from lm.data.loader import StreamData
from lm.data.preview import preview
from lm.data.sources.memory import Memory
from lm.data.tokenizer import Bytes
from lm.tasks.causal import Causal
from lm.tasks.classify import Classify
from lm.tasks.sft import Sft
from lm.tasks.tag import Tag

TEXTS = ("a b", "é\n", *("x" * 98 for _ in range(18)))


class Described(Memory):
  """A source with something to say."""

  def describe(self):
    return "twenty texts"


def make_stream(task, tmp_path):
  source = Described(texts=TEXTS, text_labels=("q", "r") * 10)
  return StreamData("s", "s", task, store.build(source, Bytes(), task, tmp_path), Bytes()), source


def test_lengths_cuts_and_examples(tmp_path):
  stream, source = make_stream(Classify(("q", "r")), tmp_path)
  lines = preview(stream, 64, source).split("\n")
  assert lines[:2] == [
    "twenty texts",
    "tokens per example: 50% at most 100, 90% at most 100, 99% at most 100, the longest 100; 90.0% cut to 64",
  ]
  assert lines[2:4] == ["  q: <s> a ▁ b </s>", "  r: <s> <0xC3> <0xA9> <0x0A> </s>"]
  assert lines[4] == f"  q: <s> {'x ' * 29}...{' x' * 9} </s> (64 tokens)"


def test_long_texts_that_are_read_in_windows_are_counted(tmp_path):
  stream, source = make_stream(Tag(tags=("B-x", "I-x", "O")).fitted(64), tmp_path)
  lengths = "50% at most 64, 90% at most 64, 99% at most 64, the longest 64"
  line = f"tokens per example: {lengths}; 18 of 20 stand in several windows of 64"
  assert preview(stream, 64, source).split("\n")[1] == line


def test_conversations_are_packed_and_shown_one_by_one(tmp_path):
  rows = tuple(f'{{"prompt": "{i}", "response": "{"x" * 30 * (i % 2)}y"}}' for i in range(10))
  source, task = Memory(rows=rows), Sft()
  stream = StreamData("s", "s", task, store.build(source, Bytes(), task, tmp_path), Bytes())
  lines = preview(stream, 44, source).split("\n")
  lengths = "50% at most 37, 90% at most 52, 99% at most 52, the longest 52"
  assert lines[0] == f"tokens per example: {lengths}; 50.0% cut to 44"
  assert len(lines) == 4
  long = tuple(f'{{"prompt": "{"x" * (i % 2) * 40}?", "response": "{i}"}}' for i in range(10))
  stream = StreamData("s", "s", task, store.build(Memory(rows=long), Bytes(), task, tmp_path), Bytes())
  words = "  warning: nothing that is learned is left in 62.5% of the rows, which are cut; a larger config.seq_len keeps it"
  assert preview(stream, 44, source).split("\n")[1] == words
  assert all(line.startswith("  <s> u s e r : <0x0A> ") and line.count("<s>") == 1 for line in lines[1:])


def test_a_cut_row_that_no_sample_of_all_rows_would_meet_is_found(tmp_path):
  rows = tuple(f'{{"prompt": "{"x" * 40 * (i == 1)}?", "response": "y"}}' for i in range(1200))
  source, task = Memory(rows=rows), Sft()
  stream = StreamData("s", "s", task, store.build(source, Bytes(), task, tmp_path), Bytes())
  words = "  warning: nothing that is learned is left in 0.2% of the rows, which are cut; a larger config.seq_len keeps it"
  assert preview(stream, 44, source).split("\n")[1] == words


def test_packed_streams_have_their_description_only(tmp_path):
  stream, source = make_stream(Causal(), tmp_path)
  assert preview(stream, 64, source) == "twenty texts"
  assert preview(stream, 64, Memory(texts=TEXTS)) == ""
