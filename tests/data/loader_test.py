"""Batches are a pure function of the step; hosts read the same rows; an epoch holds everything once."""

import re
from collections import Counter

import numpy as np
import pytest

from lm.config import ConfigError
from lm.data import encode, store
from lm.data.loader import EMPTY, EvalLoader, Loader, Rows, StreamData
from lm.data.sources.memory import Memory
from lm.data.sources.text import Text
from lm.data.tokenizer import Bytes
from lm.tasks.causal import Causal
from lm.tasks.classify import Classify
from lm.tasks.fim import Fim
from lm.tasks.mlm import Mlm
from lm.tasks.prefix_lm import PrefixLm
from lm.tasks.rank import Rank
from lm.tasks.ul2 import Ul2

TEXTS = tuple("x" * (i % 37 + 1) + str(i) for i in range(53))
LABELS = tuple("ab"[i % 2] for i in range(53))


def make_stream(task, tmp_path, name="main", weight=1.0):
  source = Memory(texts=TEXTS, text_labels=LABELS if isinstance(task, Classify) else ())
  return StreamData(name, name, task, store.build(source, Bytes(), task, tmp_path), Bytes(), ((0, weight),))


def make_loader(kind, tmp_path, seed=0):
  streams = {
    "causal": [Causal()],
    "mlm": [Mlm()],
    "classify": [Classify(("a", "b"))],
    "buckets": [Classify(("a", "b"))],
    "mixture": [Mlm(), Classify(("a", "b"))],
    "spans": [Mlm(unit="span")],
    "denoisers": [PrefixLm(), Ul2(sentinel_ids=tuple(range(6, 14)), mode_ids=(19, 20, 21))],
    "middles": [Fim(symbol_ids=(19, 20, 21))],
  }[kind]
  buckets = (16, 32) if kind == "buckets" else ()
  data = [make_stream(task, tmp_path, f"s{i}", 2.0 - i) for i, task in enumerate(streams)]
  return Loader(data, batch_size=8, seq_len=32, buckets=buckets, seed=seed)


def same(a, b):
  return a.keys() == b.keys() and all((a[k][n] == b[k][n]).all() and a[k].keys() == b[k].keys() for k in a for n in a[k])


KINDS = ["causal", "mlm", "classify", "buckets", "mixture", "spans", "denoisers", "middles"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_of_a_new_loader_equals_the_stream(kind, tmp_path):
  stream = [make_loader(kind, tmp_path).batch(step) for step in range(40)]
  for step in np.random.default_rng(0).permutation(40):
    assert same(make_loader(kind, tmp_path).batch(int(step)), stream[step])
  assert not same(make_loader(kind, tmp_path, seed=1).batch(0), stream[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_read_the_rows_of_the_global_batch(kind, hosts, tmp_path):
  loader = make_loader(kind, tmp_path)
  for step in range(6):
    parts = [loader.batch(step, slice(h * 8 // hosts, (h + 1) * 8 // hosts)) for h in range(hosts)]
    whole = loader.batch(step)
    joined = {k: {n: np.concatenate([part[k][n] for part in parts]) for n in whole[k]} for k in whole}
    assert same(joined, whole)


def test_an_epoch_predicts_every_token_once(tmp_path):
  stream = make_stream(Causal(), tmp_path)
  seen: Counter = Counter()
  for batch, _ in EvalLoader(stream, batch_size=8, seq_len=32):
    seen.update(batch["main"]["targets"][batch["main"]["weights"] > 0].tolist())
  expected: Counter = Counter()
  for text in TEXTS:
    expected.update([*Bytes().encode(text), Bytes().eos_id])
  assert seen == expected


def test_segments_and_positions_of_packed_rows(tmp_path):
  for batch, _ in EvalLoader(make_stream(Causal(), tmp_path), batch_size=8, seq_len=32):
    segments, positions = batch["inputs"]["segment_ids"], batch["inputs"]["positions"]
    for row in range(8):
      for segment in range(1, segments[row].max() + 1):
        where = np.flatnonzero(segments[row] == segment)
        assert (np.diff(where) == 1).all()
        assert (positions[row, where] == np.arange(len(where))).all()


@pytest.mark.parametrize("buckets", [(), (16, 32)])
def test_evaluation_covers_every_sequence_once(buckets, tmp_path):
  loader = EvalLoader(make_stream(Classify(("a", "b")), tmp_path), batch_size=8, seq_len=32, buckets=buckets)
  found = [i for batch, sequence in loader for i in sequence[batch["main"]["weights"] > 0]]
  assert sorted(found) == list(range(53))
  assert len(loader) * 8 - 53 == sum(int(np.sum(sequence == EMPTY)) for _, sequence in loader)


def test_shapes_are_those_of_the_batches(tmp_path):
  for kind in KINDS:
    loader = make_loader(kind, tmp_path)
    describe = lambda batch: str({k: {n: (x.shape, x.dtype) for n, x in sorted(v.items())} for k, v in sorted(batch.items())})
    assert {describe(loader.batch(step)) for step in range(30)} <= {describe(shape) for shape in loader.shapes()}


class Roomy(Causal):
  """Wants five more positions per piece than it stores."""

  def row_cost(self, lengths_N):
    return lengths_N + 5


def test_room_for_corruption_never_reads_the_next_sequence(tmp_path):
  seen: Counter = Counter()
  for batch, _ in EvalLoader(make_stream(Roomy(), tmp_path), batch_size=8, seq_len=32):
    seen.update(batch["main"]["targets"][batch["main"]["weights"] > 0].tolist())
    segments = batch["inputs"]["segment_ids"]
    assert ((segments > 0).sum(1) + 5 * segments.max(1) <= 32).all()
  expected: Counter = Counter()
  for text in TEXTS:
    expected.update([*Bytes().encode(text), Bytes().eos_id])
  assert seen == expected


def test_streams_are_served_by_their_weights(tmp_path):
  loader = make_loader("mixture", tmp_path)  # weights 2 and 1
  counts = np.zeros(2, int)
  for step in range(30):
    batch = loader.batch(step)
    counts += [int((batch[key]["weights"].reshape(8, -1).max(1) > 0).sum()) for key in ("s0", "s1")]
    assert counts.sum() == 8 * (step + 1)
    assert abs(counts[1] - counts.sum() / 3) <= 1


def test_an_epoch_of_buckets_holds_every_row_once_at_a_length_that_fits(tmp_path):
  loader = make_loader("buckets", tmp_path)
  expected = Counter((Bytes().cls_id, *Bytes().encode(text)[:30], Bytes().sep_id) for text in TEXTS)
  num_batches = loader.rows_per_epoch // 8
  for epoch in range(2):
    seen: Counter = Counter()
    lengths = []
    for step in range(epoch * num_batches, (epoch + 1) * num_batches):
      inputs = loader.batch(step)["inputs"]
      lengths.append(inputs["tokens"].shape[1])
      real = inputs["segment_ids"] > 0
      seen.update(tuple(row[mask].tolist()) for row, mask in zip(inputs["tokens"], real, strict=True) if mask.any())
    assert seen == expected
    assert set(lengths) == {16, 32}


@pytest.mark.parametrize(
  ("tasks", "buckets", "message"),
  [
    ([Causal()], (16, 32), "packed"),
    ([Classify(("a", "b"))] * 2, (16, 32), "several streams"),
    ([Classify(("a", "b"))], (16, 24), "must rise to config.seq_len"),
    ([Classify(("a", "b"))], (32, 16, 32), "must rise to config.seq_len"),
  ],
)
def test_buckets_that_would_lose_rows_are_refused(tasks, buckets, message, tmp_path):
  streams = [make_stream(task, tmp_path, f"s{i}") for i, task in enumerate(tasks)]
  with pytest.raises(ConfigError, match=message):
    Loader(streams, batch_size=8, seq_len=32, buckets=buckets)


def test_an_epoch_reads_every_row_once_in_an_order_of_its_own(tmp_path):
  loader = make_loader("classify", tmp_path)
  rows = [tuple(row) for step in range(20) for row in loader.batch(step)["inputs"]["tokens"].tolist()]
  first, second = rows[:53], rows[53:106]
  assert sorted(first) == sorted(second)
  assert first != second


def test_a_row_is_masked_anew_in_every_epoch(tmp_path):
  rows = Rows(make_stream(Mlm(), tmp_path), 32, seed=0)
  numbers = np.arange(rows.plan.num_rows)
  first, second = (rows.read(numbers, np.full(len(numbers), epoch), 32) for epoch in (0, 1))
  assert (first["segment_ids"] == second["segment_ids"]).all()
  assert (first["masked_positions"] != second["masked_positions"]).any(axis=1).mean() > 0.9


def test_noise_belongs_to_the_place_in_the_document_also_where_it_is_split(tmp_path):
  seen = []

  class Spy(Causal):
    def corrupt(self, rows, noise, tok, width):
      seen.append((rows["tokens"], rows["segment_ids"] > 0, noise.offset_RT))
      return super().corrupt(rows, noise, tok, width)

  text = "".join(map(chr, range(33, 123)))  # so that a token tells its place
  task = Spy()
  stored = store.build(Memory(texts=(text,)), Bytes(), task, tmp_path)
  for _ in EvalLoader(StreamData("s", "s", task, stored, Bytes()), batch_size=8, seq_len=32):
    tokens, real, offset = seen[-1]
    places = np.where(tokens == Bytes().bos_id, 0, tokens - Bytes().encode(text)[0] + 1)
    assert real.sum() == 91
    assert (offset == places)[real].all()


def test_an_epoch_ends_when_the_first_stream_has_been_read(tmp_path):
  rows = [Rows(make_stream(task, tmp_path), 32, seed=0).plan.num_rows for task in (Mlm(), Classify(("a", "b")))]
  ends = np.ceil([rows[0] * 3 / 2, rows[1] * 3])  # weights 2 and 1
  assert ends[0] != ends[1]
  assert make_loader("mixture", tmp_path).rows_per_epoch == min(ends)


def table(report):
  """Cells of the report by the heads of their columns, a dict for each stream."""
  heads, *lines = [re.split(r"  +", line.strip()) for line in report.splitlines()]
  return [dict(zip(heads, line, strict=True)) for line in lines]


def test_the_report_says_how_each_stream_is_packed(tmp_path):
  texts = ("x" * 70, "y" * 9, "z" * 9)
  stored = lambda task: store.build(Memory(texts=texts, text_labels=("a", "b", "a")), Bytes(), task, tmp_path)
  tasks = {"docs": Mlm(), "kind_of_text": Classify(("a", "b"))}
  loader = Loader([StreamData(k, k, v, stored(v), Bytes()) for k, v in tasks.items()], batch_size=8, seq_len=32)
  docs, kind = table(loader.report())
  assert docs == {
    "data": "docs",
    "sequences": "3",
    "split": "1",
    "cut": "0",
    "tokens": "94",
    "rows of 32": "3",
    "pieces per row": "1.7",
    "real": "97.9%",
  }
  assert (kind["data"], kind["cut"], kind["tokens"], kind["real"]) == ("kind_of_text", "1", "54", "56.2%")
  assert len({len(line) for line in loader.report().splitlines()}) == 1


def test_the_report_says_how_full_rows_are_after_corruption(tmp_path):
  loader = make_loader("denoisers", tmp_path)
  found = table(loader.report())
  for cells, stream in zip(found, (0, 1), strict=True):
    rows = loader._rows[stream]
    real = rows.read(np.arange(rows.plan.num_rows), np.zeros(rows.plan.num_rows, int), 32)["segment_ids"] > 0
    assert cells["corrupted"] == f"{real.mean():.1%}"
  assert found[1]["corrupted"] > found[1]["real"]  # sentinels
  assert "corrupted" not in make_loader("mixture", tmp_path).report()


@pytest.mark.parametrize("task", [Causal(), Mlm()])
@pytest.mark.parametrize("name", ["wikitext-2", "c4", "tnews", "sst2"])
def test_public_text_fills_99_percent_of_512_tokens(name, task, data_dir, tmp_path):
  files = {"wikitext-2": "wikitext-2/train.txt", "c4": "pretrain_text/c4_demo.jsonl", "tnews": "tnews/train.json"}
  if name == "sst2":  # sentences before a tab, without a head
    lines = (data_dir / "sst2/train.tsv").read_text().splitlines()
    source = Memory(texts=tuple(line.split("\t")[0] for line in lines))
  else:
    source = Text(path=str(data_dir / files[name]), text="sentence" if name == "tnews" else "text")
  stream = StreamData("main", "main", task, store.build(source, Bytes(), task, tmp_path), Bytes())
  loader = Loader([stream], batch_size=64, seq_len=512)
  [cells] = table(loader.report())
  assert 99 <= float(cells["real"].removesuffix("%")) <= 100
  segments = np.concatenate([loader.batch(step)["inputs"]["segment_ids"] for step in range(10)])
  assert (segments > 0).mean() >= 0.99


def test_partners_are_drawn_among_sequences_that_have_something_in_the_column():
  """And where all have, a sequence is never its own."""
  sequence = lambda number, drawn: {"tokens": np.full(3 * (not drawn), number), "place": np.full(3 * (not drawn), 3)}
  task = Rank(item_len=4, num_negatives=2)
  for own in (False, True):
    rows = [sequence(i, i < 5) | {"candidate": np.full(2 * (i < 5 or own), 40 + i)} for i in range(9)]
    stream = StreamData("s", "s", task, store.Store(None, encode.collect(rows)), Bytes())
    rows, drawn = Rows(stream, 32, seed=0), set()
    for epoch in range(60):
      found = rows.read(np.arange(4), np.full(4, epoch), 32)
      for row, ids in enumerate(found["segment_ids"]):
        mine = {int(i) - 40 for i in found["tokens"][row][ids > 2]}
        assert not own or row + 5 not in mine
        drawn |= mine
    assert drawn == set(range(9 if own else 5))
