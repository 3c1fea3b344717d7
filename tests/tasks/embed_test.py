"""Contrastive embeddings: the loss of brute force in float64, on a mesh that of one device, and what rows hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import build, predictor, train
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.tasks.contrast import contrast_rows, unit
from lm.tasks.embed import Embed
from tests.conftest import TEXTS, make_config, make_data, make_run

B, D = 6, 8
FORMS = [{}, {"symmetric": True}, {"normalize": False, "temperature": 1.0}, {"matryoshka_dims": (2, 4), "temperature": 0.2}]
ROWS = [{"text": "Hi", "text_pair": "Yo", "text_negatives": ["No", "Never ever"]}, {"text": "A", "text_pair": "B"}]


class Vectors:
  """What a loss asks of Forward, with the vectors of the texts as the model."""

  causal = False
  unit, contrast = staticmethod(unit), staticmethod(contrast_rows)

  def __init__(self, text_BSD):
    self.text_BSD = text_BSD

  def pooled_segments(self, batch, rng, pooling, count):
    assert count == self.text_BSD.shape[1]
    return self.text_BSD


def make_batch(num_hard_negatives, seed=0):
  """Vectors and rows, of which two ask the same, two have the same positive, one lacks a negative and one is left out."""
  rng, C = np.random.default_rng(seed), 1 + num_hard_negatives
  groups = np.arange(1, B * C + 1).reshape(B, C)
  groups[1, 0] = groups[0, 0]
  if num_hard_negatives:
    groups[3, -1], groups[4, -1] = 0, groups[2, 0]
  question = np.asarray([1, 2, 3, 3, 5, 6])
  weights = np.asarray([1, 1, 1, 1, 1, 0], np.float32)
  return rng.normal(size=(B, 1 + C, D)), {"groups": groups, "question": question, "weights": weights}


def exact(task, text_BSD, batch):
  """The sums in float64, anchor by anchor."""
  groups, asks, weights = batch["groups"], batch["question"], batch["weights"]
  places = [(j, c) for j in range(B) for c in range(groups.shape[1]) if weights[j] and groups[j, c]]
  belongs = lambda i, j, c: groups[j, c] == groups[i, 0] or (asks[i] == asks[j] and c == 0)
  found = {"loss": 0.0, "accuracy": 0.0}
  dims = (D, *task.matryoshka_dims)
  for dim in dims:
    x = text_BSD[:, :, :dim]
    x = x / np.linalg.norm(x, axis=-1, keepdims=True) if task.normalize else x
    score = lambda a, b: a @ b / task.temperature
    for i in (i for i in range(B) if weights[i]):

      def cost(scores, mine):
        negatives = sum(np.exp(s) for s, own in zip(scores, mine, strict=True) if not own)
        return np.mean([-np.log(np.exp(s) / (np.exp(s) + negatives)) for s, own in zip(scores, mine, strict=True) if own])

      scores = [score(x[i, 0], x[j, 1 + c]) for j, c in places]
      mine = [belongs(i, j, c) for j, c in places]
      loss = cost(scores, mine)
      if task.symmetric:
        others = [j for j in range(B) if weights[j]]
        loss = (loss + cost([score(x[i, 1], x[j, 0]) for j in others], [belongs(j, i, 0) for j in others])) / 2
      found["loss"] += loss / len(dims)
      if dim == D:
        best = max(s for s, own in zip(scores, mine, strict=True) if own)
        found["accuracy"] += best >= max(scores)
  return found


@pytest.mark.parametrize("num_hard_negatives", [0, 2])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_sums_and_gradient_are_those_of_float64(form, num_hard_negatives):
  task, (texts, batch) = Embed(num_hard_negatives=num_hard_negatives, pair=True, **form), make_batch(num_hard_negatives)
  compute = jax.jit(lambda x: task.loss(Vectors(x), jax.tree.map(jnp.asarray, batch), None))
  found, expected = compute(jnp.asarray(texts, jnp.float32)), exact(task, texts, batch)
  assert found.keys() == expected.keys() == task.denominators(batch).keys()
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=2e-5, err_msg=name)
  gradient = np.asarray(jax.grad(lambda x: compute(x)["loss"])(jnp.asarray(texts, jnp.float32)))
  assert not gradient[-1].any()  # the row that is left out
  for at in [(0, 0, 1), (1, 1, 0), (2, 1, 3), (3, 0, 5), (4, texts.shape[1] - 1, 7)]:
    step = np.zeros_like(texts)
    step[at] = 1e-5
    up, down = (exact(task, texts + sign * step, batch)["loss"] for sign in (1, -1))
    np.testing.assert_allclose(gradient[at], (up - down) / 2e-5, atol=3e-5 * np.abs(gradient).max())


@pytest.mark.parity
@pytest.mark.parametrize("num_hard_negatives", [0, 1])
def test_without_equal_texts_it_is_the_cross_entropy_of_torch(num_hard_negatives):
  """sentence-transformers' MultipleNegativesRankingLoss, of cosines times 20."""
  import torch
  from torch.nn import functional

  rng = np.random.default_rng(1)
  texts = rng.normal(size=(B, 2 + num_hard_negatives, D)).astype(np.float32)
  groups = np.arange(1, B * (1 + num_hard_negatives) + 1).reshape(B, -1)
  batch = {"groups": groups, "question": np.arange(1, B + 1), "weights": np.ones(B, np.float32)}
  task = Embed(num_hard_negatives=num_hard_negatives, pair=True)
  found, gradient = jax.value_and_grad(lambda x: task.loss(Vectors(x), jax.tree.map(jnp.asarray, batch), None)["loss"] / B)(
    texts
  )
  theirs = torch.tensor(texts, requires_grad=True)
  x = functional.normalize(theirs, dim=-1)
  candidates = torch.cat([x[:, 1 + i] for i in range(1 + num_hard_negatives)])
  loss = functional.cross_entropy(20 * x[:, 0] @ candidates.T, torch.arange(B))
  loss.backward()
  np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
  np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_a_row_holds_all_texts_apart_and_one_that_is_cut_loses_the_longest_first():
  task = Embed(num_hard_negatives=2, pair=True)
  (stored,) = task.prepare(ROWS[0], Bytes())

  def read(length):
    pads = {name: field.pad for name, field in task.fields.items()}
    cut = {name: np.atleast_1d(stored[name])[: length if field.dims else None] for name, field in task.fields.items()}
    short = length - len(cut["tokens"])
    rows = {n: np.pad(x, (0, short), constant_values=pads[n])[None] if task.fields[n].dims else x for n, x in cut.items()}
    found = task.corrupt(rows | {"segment_ids": np.ones((1, length), int)}, None, Bytes(), length)
    texts = []
    for number in range(1, 5):
      mine = found["segment_ids"][0] == number
      assert found["positions"][0][mine].tolist() == list(range(mine.sum()))
      ids = found["tokens"][0][mine].tolist()
      assert (ids[0], ids[-1]) == (Bytes().cls_id, Bytes().sep_id)
      texts.append(Bytes().decode(ids[1:-1]))
    return texts, found

  texts, found = read(40)
  assert texts == ["Hi", "Yo", "No", "Never ever"]
  assert found["weights"].tolist() == [1] and len(set(found["groups"][0])) == 3
  assert read(18)[0] == ["Hi", "Yo", "No", "Neve"]
  assert read(13)[0] == ["Hi", "Y", "N", "N"]


def test_what_belongs_together_has_one_number():
  stored = lambda task, example: task.prepare(example, Bytes())[0]
  pairs, single = Embed(pair=True), Embed()
  yo = stored(pairs, {"text": "Hi", "text_pair": "Yo"})
  assert yo["group_0"] == stored(pairs, {"text": "Hello", "text_pair": "Yo"})["group_0"]
  assert yo["question"] == stored(pairs, {"text": "Hi", "text_pair": "Hey"})["question"]
  assert stored(pairs, {"text": "Hi"})["group_0"] == 0
  a, b, c = (stored(single, {"text": text, "label": label}) for text, label in ("ax", "bx", "cy"))
  assert a["group_0"] == b["group_0"] != c["group_0"] and a["question"] != b["question"]
  assert a["tokens"].tolist().count(Bytes().cls_id) == 2  # it stands twice


def steps(run, count=3):
  run.program.compile(run.loader.shapes(), [])
  state, found = run.init_state(), []
  for step in range(count):
    state, result = run.program.train(state, run.loader.batch(step), run.noise_rng)
    found.append([float(result["loss"]), float(result["grad_norm"]), float(result["sums"]["embed/accuracy"])])
  return found, jax.device_get(state.params)


def test_negatives_are_those_of_the_global_batch_on_a_mesh():
  """Losses and gradients are those of one device, which has the whole batch."""
  settings = {"task": {"name": "embed", "symmetric": True, "matryoshka_dims": (8, 16)}, "batch_size": 16}
  mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  (one, params), (many, others) = (steps(make_run("embed", **settings, **on)) for on in ({}, {"devices": 8, "mesh": mesh}))
  np.testing.assert_allclose(many, one, rtol=2e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, others)


def test_a_batch_in_parts_is_refused_in_one_line():
  with pytest.raises(ValueError, match="config.tokens_per_device=128: makes 4 micro-batches of a batch, all rows .* compares"):
    make_run("embed", tokens_per_device=128)
  assert build.make_outline(make_config("embed", tokens_per_device="auto")).program.spec.accumulation == 1
  from lm.preflight import fit

  outline = build.make_outline(make_config("embed"))
  assert fit.accumulations(outline, outline.program.spec.mesh) == [1]


def test_streams_are_contrasted_each_within_itself():
  streams = {name: {"task": "embed", "data": make_data("embed", TEXTS[i::2])} for i, name in enumerate("ab")}
  run = make_run("embed", task=None, data=None, streams=streams)
  compute, params, batch = jax.jit(run.program.spec.objective.sums), run.init_state().params, run.loader.batch(0)
  sums = compute(params, batch)
  np.testing.assert_allclose(sums["a/loss"] + sums["b/loss"], sums["a+b/loss"], rtol=1e-5)
  (key,) = set(batch) - {INPUTS}
  other = batch[key] | {"weights": batch[key]["weights"] * (batch[key]["stream"] == 0)}
  np.testing.assert_allclose(compute(params, batch | {key: other})["a/loss"], sums["a/loss"], rtol=1e-5)
  assert float(sums["a/loss"]) > 0


def test_single_texts_stand_twice_and_dropout_alone_tells_them_apart():
  run = make_run("embed", data={"name": "memory", "texts": TEXTS}, model={"name": "bert-tiny", "dropout_rate": 0.3})
  params, batch, forward = run.init_state().params, run.loader.batch(0), run.program.spec.objective._forward
  read = jax.jit(lambda rng: forward(params).pooled_segments({**batch[INPUTS], **batch["embed"]}, rng, "mean", 2))
  quiet, noisy = read(None), read(jax.random.key(0))
  np.testing.assert_allclose(quiet[:, 0], quiet[:, 1], atol=1e-5)
  assert np.abs(noisy[:, 0] - noisy[:, 1]).min(-1).min() >= 0 and np.abs(noisy[:, 0] - noisy[:, 1]).mean() > 0.05


def test_a_trained_run_embeds_texts_as_it_was_measured(tmp_path):
  """Labels that the texts do not say, so that neighbours are right by chance and the measure is no round number."""
  labels = tuple(str(i * i % 7) for i in range(len(TEXTS)))
  data = {"name": "memory", "texts": TEXTS, "text_labels": labels}
  found = train.train(make_run("embed", data=data, seq_len=128, total_steps=10, eval_every=10), tmp_path / "run")["metrics"]
  assert found["eval/validation/loss"] < found["step0/eval/validation/loss"]
  model = predictor.load(tmp_path / "run", devices=jax.devices()[:1])
  vectors = model.embed(TEXTS)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
  score = vectors @ vectors.T - 3 * np.eye(len(TEXTS))
  hit = np.asarray(labels)[(-score).argsort(1)[:, :-1]] == np.asarray(labels)[:, None]
  hit = hit[hit.any(1)]
  precision = [np.mean([row[: n + 1].mean() for n in np.flatnonzero(row)]) for row in hit]
  assert found["eval/validation/map"] == pytest.approx(np.mean(precision), rel=1e-3)
  assert model.predict(TEXTS[:2]) == [{"embedding": pytest.approx(vector.tolist(), abs=1e-5)} for vector in vectors[:2]]


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ({"task": {"name": "embed", "pooling": "max"}}, "task.pooling='max': accepted are first, last, mean"),
    ({"task": {"name": "embed", "temperature": 0.0}}, "task.temperature=0.0: must be above 0"),
    ({"task": {"name": "embed", "matryoshka_dims": (8, 8)}}, "task.matryoshka_dims=.*: accepted are different numbers"),
    (
      {"task": {"name": "embed", "num_hard_negatives": 3}},
      "is told task.num_hard_negatives=3, data 'memory' gives 0 beside a pair",
    ),
    ({"seq_len": 4}, "config.seq_len=4: a row holds 2 texts; accepted is 6 or more"),
    ({"data": {"name": "memory", "texts": ("a", "b")}, "task": {"name": "embed", "pair": True}}, "'embed' reads two texts"),
  ],
)
def test_bad_settings_are_one_line(settings, words):
  with pytest.raises(ValueError, match=words):
    make_run("embed", **settings)


def test_dims_that_the_model_has_not_are_one_line():
  run = make_run("embed", task={"name": "embed", "matryoshka_dims": (32,)})
  with pytest.raises(ValueError, match=r"task.matryoshka_dims=\(32,\): 32 must be below the model's 32 dims"):
    run.program.compile(run.loader.shapes(), [])


def test_columns_of_a_table_beside_a_pair_are_negatives_and_no_other_task_reads_them(tmp_path):
  path = tmp_path / "x.csv"
  path.write_text("q,a,b,c,label\n" + "".join(f"q{i},a{i},b{i},c{i},{i % 2}\n" for i in range(40)))
  data = {"name": "table", "path": str(path), "text": "q,a,b,c"}
  assert make_run("embed", data=data).tasks["embed"].num_hard_negatives == 2
  outline = build.make_outline(make_config("embed", data=data), jax.devices()[:1])
  assert outline.program.spec.objective.tasks[0][1].num_hard_negatives == 2
  with pytest.raises(ValueError, match="task 'classify' reads no more than two texts, data 'table' gives 2 beside a pair"):
    make_run("classify", data=data | {"label": "label"})
  with pytest.raises(ValueError, match="x.csv line .*: a pair with a label; task 'embed' reads pairs"):
    make_run("embed", data=data | {"text": "q,a", "label": "label"})
