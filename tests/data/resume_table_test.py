"""Every task, packed, padded and in buckets, alone and mixed: any step asked of anybody is that step of the unbroken stream."""

import functools
import hashlib

import numpy as np
import pytest

from lm import plug
from lm.data import encode
from lm.data.loader import Loader, StreamData
from lm.data.store import Store
from lm.data.tokenizer import Bytes
from tests.conftest import OPTIONS, make_examples

STEPS, ROWS, LENGTH = 200, 8, 32
HOSTS = (1, 2, 4, 8)
TEXTS = tuple("The cat sat. It ran away.\nWell, "[: i % 23 + 4] + "x" * (i % 41) + f" {i}." for i in range(83))
STAGES = {
  "one": (((0, 1.0),),),
  "mixture": (((0, 0.7),), ((0, 0.25),), ((0, 0.05),)),
  "stages": (((0, 0.7), (60, 0.1), (150, 0.0)), ((0, 0.0), (60, 0.9)), ((0, 0.3), (101, 0.001))),
}


def forms(task):
  """How rows of a task may be made."""
  return ("packed",) if task.packed else ("padded", "buckets")


def make_task(name):
  options = OPTIONS.get(name, {}) | ({"labels": ("a", "b")} if name in ("classify", "multilabel") else {})
  options |= {"tags": ("B-act", "B-thing", "I-act", "O")} if name == "tag" else {}
  options |= {"answers": ("span", "none"), "window": LENGTH} if name == "span_qa" else {}
  options |= {"choices": ("0", "1", "2")} if name == "choose" else {}
  if name == "prompt_classify":  # as a run makes it: the labels of its source, the pieces of its tokenizer
    return plug.make("task", plug.Plug(name, (("labels", ("a", "b")),))).read_with(Bytes(), causal=False)
  options |= {"pair_len": LENGTH - 3} if name == "sentence_pair" else {}
  return plug.make("task", plug.Plug(name, tuple(options.items())))


CASES = [
  (name, form, mixture)
  for name in plug.names("task")
  for form in forms(plug.find("task", name))
  for mixture in (("one",) if form == "buckets" else STAGES)
]


@functools.cache
def make_store(name, task, part):
  """Every third text, from `part` on, as the task prepares it."""
  examples = make_examples(name, TEXTS[part::3])
  if name in ("classify", "prompt_classify"):
    examples = [example | {"label": "ab"[i % 2]} for i, example in enumerate(examples)]
  if name == "multilabel":
    examples = [example | {"label": ["a"][: i % 2] + ["b"][: i // 2 % 2]} for i, example in enumerate(examples)]
  return Store(None, encode.collect(sequence for example in examples for sequence in task.prepare(example, Bytes())))


def make_loader(name, form, mixture):
  task = make_task(name)
  streams = [
    StreamData(f"s{i}", f"s{i % 2}", task, make_store(name, task, i), Bytes(), stages)  # the first and the last share a key
    for i, stages in enumerate(STAGES[mixture])
  ]
  buckets = (16, LENGTH) if form == "buckets" else ()
  return Loader(streams, batch_size=ROWS, seq_len=LENGTH, buckets=buckets, seed=7)


def digest(batch):
  """A hash of all names, types, shapes and bytes of a batch."""
  found = hashlib.blake2b()
  for key, arrays in sorted(batch.items()):
    for name, x in sorted(arrays.items()):
      found.update(f"{key} {name} {x.dtype} {x.shape}".encode() + x.tobytes())
  return found.digest()


def of_hosts(loader, step, num_hosts):
  """The batch of a step from hosts that each read their rows only."""
  size = ROWS // num_hosts
  parts = [loader.batch(step, slice(host * size, (host + 1) * size)) for host in range(num_hosts)]
  return {k: {n: np.concatenate([part[k][n] for part in parts]) for n in v} for k, v in parts[0].items()}


@pytest.mark.parametrize(("name", "form", "mixture"), CASES, ids=["-".join(case) for case in CASES])
def test_resume_at_every_step_and_on_any_number_of_hosts(name, form, mixture):
  unbroken = make_loader(name, form, mixture)
  expected = [digest(unbroken.batch(step)) for step in range(STEPS)]
  assert len(set(expected)) == STEPS
  # Resumed at each step, by a loader that has served nothing, or other steps only.
  order = np.random.default_rng(0).permutation(STEPS)
  other = make_loader(name, form, mixture)
  for i, step in enumerate(order.tolist()):
    fresh = make_loader(name, form, mixture) if i % 40 == 0 else other
    assert digest(fresh.batch(step)) == expected[step]
  # The number of hosts changes every few steps.
  hosts = make_loader(name, form, mixture)
  for step in range(0, STEPS, 4):
    assert digest(of_hosts(hosts, step, HOSTS[step // 12 % 4])) == expected[step]
