"""AdaLoRA: what is kept when, against a plain reference; the whole budget is used; the same after an interruption."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import train, tree
from lm.peft.adalora import Adalora
from tests.conftest import make_run

SHORT = "adalora(initial_rank=4,target_rank=2,prune_from=2,prune_until=8,prune_every=2)"
MODULES = ("attention/query", "ffn/down")
PEFT = Adalora(initial_rank=4, target_rank=2, prune_from=2, prune_until=10, prune_every=3, beta1=0.8, beta2=0.7)


def draw(seed, layers=2):
  """Leaves of two modules, each of two layers."""
  sizes = {"a": (layers, 5, 4), "lambda": (layers, 1, 4), "b": (layers, 4, 3)}
  names = [f"backbone/blocks/{module}/lora/default/{leaf}" for module in MODULES for leaf in sizes]
  keys = jax.random.split(jax.random.key(seed), len(names))
  drawn = {name: jax.random.normal(key, sizes[name.rsplit("/", 1)[1]]) for name, key in zip(names, keys, strict=True)}
  return tree.unflatten(drawn)


class Reference:
  """The paper's algorithm 1, a triplet at a time, in float64. kept: {(module, layer, triplet)}."""

  def __init__(self):
    self.sensitivity, self.uncertainty = {}, {}
    self.kept = {(module, layer, i) for module in MODULES for layer in range(2) for i in range(4)}

  def step(self, params, grads, taken):
    leaf = lambda flat, module, name: np.asarray(flat[f"backbone/blocks/{module}/lora/default/{name}"], np.float64)
    for name in params if taken < 10 else ():
      now = np.abs(np.asarray(params[name], np.float64) * np.asarray(grads[name], np.float64))
      self.sensitivity[name] = 0.8 * self.sensitivity.get(name, 0) + 0.2 * now
      self.uncertainty[name] = 0.7 * self.uncertainty.get(name, 0) + 0.3 * np.abs(now - self.sensitivity[name])
    if taken != 10 and not (2 < taken < 10 and taken % 3 == 0):
      return taken > 10
    score = {name: self.sensitivity[name] * self.uncertainty[name] for name in self.sensitivity}
    importance = {}
    for module, layer, i in ((module, layer, i) for module in MODULES for layer in range(2) for i in range(4)):
      a, value, b = (leaf(score, module, name)[layer] for name in ("a", "lambda", "b"))
      importance[module, layer, i] = value[0, i] + a[:, i].mean() + b[i].mean()
    budget = int((16 - 8) * (1 - (taken - 2) / 8) ** 3 + 8)
    self.kept = set(sorted(importance, key=importance.__getitem__)[-budget:])
    return True


def test_what_is_kept_is_what_the_paper_says():
  params, reference, state = draw(0), Reference(), PEFT.init_state(draw(0))
  update = jax.jit(PEFT.after_update)
  budgets = []
  for step in range(13):
    params, grads = jax.tree.map(lambda x, y: x + 0.1 * y, params, draw(100 + step)), draw(200 + step)
    masks = reference.step(tree.flatten(params), tree.flatten(grads), step + 1)
    new, state = update(params, grads, state, jnp.int32(step))
    before, after = tree.flatten(params), tree.flatten(new)
    for name, x in before.items():
      module, leaf = name.removeprefix("backbone/blocks/").split("/lora/default/")
      kept = np.ones(x.shape, bool)
      if leaf == "lambda" and masks:
        kept = np.asarray([[[(module, layer, i) in reference.kept for i in range(4)]] for layer in range(2)])
      np.testing.assert_array_equal(after[name], np.where(kept, x, 0), err_msg=f"{name} after step {step + 1}")
    budgets.append(sum(np.count_nonzero(x) for name, x in after.items() if name.endswith("lambda")))
    params = new
  # Chosen after steps 3, 6, 9 and 10; between two choices the others may return.
  assert budgets[:3] == [16, 16, 13] and (budgets[5], budgets[8]) == (9, 8) and budgets[9:] == [8] * 4
  ranks = PEFT.report(params)
  assert sum(sum(each) for each in ranks.values()) == 8 and len(ranks["rank/backbone/blocks/ffn/down"]) == 2


def test_a_value_that_was_pruned_may_return():
  params, state, pruned = jax.tree.map(jnp.ones_like, draw(0)), PEFT.init_state(draw(0)), {}
  for step in range(9):
    grads = tree.flatten(draw(step))
    # Chosen after 6 steps; from then on what was pruned matters most.
    grads = {name: jnp.where(pruned[name], 100.0 * step, 0) if name in pruned else x for name, x in grads.items()}
    _, state = PEFT.after_update(params, tree.unflatten(grads), state, jnp.int32(step))
    if step == 5:
      pruned = {name: ~x for name, x in tree.flatten(state["kept"]).items()}
  assert sum(map(np.count_nonzero, pruned.values())) == 16 - 9
  kept = tree.flatten(state["kept"])
  assert all(kept[name][x].all() for name, x in pruned.items())


def test_the_penalty_is_the_mean_distance_from_orthogonal_vectors():
  params = draw(1)
  expected = []
  for name, x in tree.flatten(params).items():
    for matrix in np.asarray(x) if not name.endswith("lambda") else ():
      gram = matrix.T @ matrix if name.endswith("a") else matrix @ matrix.T
      expected.append(np.linalg.norm(gram - np.eye(4)))
  found = dataclasses.replace(PEFT, orthogonality=0.25).penalties(params)
  np.testing.assert_allclose(found["orthogonality"], 0.25 * np.mean(expected), rtol=1e-5)
  assert dataclasses.replace(PEFT, orthogonality=0.0).penalties(params) == {}
  orthogonal = {"query": {"lora": {"default": {"a": jnp.eye(5)[:, :4], "lambda": jnp.ones((1, 4)), "b": jnp.eye(4)}}}}
  grads = jax.grad(lambda params: PEFT.penalties(params)["orthogonality"])(orthogonal)
  assert all(not np.any(x) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("tokens", [None, 2 * 64])
def test_the_step_adds_the_penalty_once_however_it_accumulates(tokens):
  model = {"name": "bert-tiny", "num_layers": 2, "model_dim": 32, "num_heads": 4, "ffn_dim": 64, "dropout_rate": 0.0}
  run = make_run("mlm", model=model, peft=SHORT, tokens_per_device=tokens)
  run.program.compile(run.loader.shapes(), [])
  state = run.init_state()
  penalty = float(run.program.spec.peft.penalties(state.params)["orthogonality"])
  assert penalty > 0.5
  _, metrics = run.program.train(state, run.loader.batch(0), run.noise_rng)
  own = float(metrics["sums"]["mlm/loss"] / metrics["weights"]["mlm/loss"])
  np.testing.assert_allclose(float(metrics["loss"]), own + penalty, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ("target_rank=13", "peft.target_rank=13: must be 1 to peft.initial_rank=12"),
    ("target_rank=0", "peft.target_rank=0: must be 1 to"),
    ("prune_every=0", "peft.prune_every=0: must be at least 1"),
    ("beta1=1.0", "peft.beta1=1.0: must be between 0 and 1"),
    ("orthogonality=-1.0", "peft.orthogonality=-1.0: must not be negative"),
    ("prune_from='80%'", "peft.prune_until='70%': must be behind peft.prune_from='80%' and within total_steps=10"),
    ("prune_until=11", "peft.prune_until=11: must be behind .* and within total_steps=10"),
    ("prune_until=soon", "peft.prune_until='soon': expected a whole number of steps, or a number with one of the units"),
  ],
)
def test_a_bad_option_is_one_line(options, words):
  with pytest.raises(ValueError, match=words) as raised:
    make_run("classify", peft=f"adalora({options})")
  assert "\n" not in str(raised.value)


def test_shares_are_of_the_run():
  peft = make_run("classify", peft="adalora(prune_from=5%,prune_until=50%)", total_steps=60).program.spec.peft
  assert (peft.prune_from, peft.prune_until) == (3, 30)
  np.testing.assert_allclose([peft.budget_share(step) for step in (1, 3, 30, 60)], [12, 12, 8, 8])


def test_an_interrupted_run_ends_with_the_same_bits_and_says_its_ranks(tmp_path, capsys):
  start = lambda **settings: make_run("classify", peft=SHORT, **settings)
  whole = train.train(start(), tmp_path / "whole")
  said = capsys.readouterr().err
  for steps in (5, 3):
    left = iter([False] * steps)
    train.train(start(), tmp_path / "parts", stop=lambda left=left: next(left, True))
  parts = train.train(start(), tmp_path / "parts")
  assert parts["status"] == "finished"
  for name in ("loss_sha256", "params_sha256", "peft"):
    assert parts[name] == whole[name]
  kept = json.loads((tmp_path / "parts" / "summary.json").read_text())["peft"]
  assert kept.keys() == {f"rank/backbone/blocks/attention/{module}" for module in ("query", "value")}
  assert all(len(ranks) == 2 for ranks in kept.values()) and sum(map(sum, kept.values())) == 2 * 4
  assert all(f"{name}: {ranks}" in said for name, ranks in kept.items())


def test_a_longer_run_goes_on_only_where_pruning_stays_the_same(tmp_path):
  constant = {"optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 1}}
  shares = SHORT.replace("prune_until=8", "prune_until=80%")
  for name, peft in (("steps", SHORT), ("shares", shares)):
    train.train(make_run("classify", peft=peft, **constant), tmp_path / name)
  longer = train.train(make_run("classify", peft=SHORT, total_steps=12, **constant), tmp_path / "steps")
  assert longer["step"] == 12 and sum(map(sum, longer["peft"].values())) == 2 * 4
  with pytest.raises(ValueError, match="total_steps: 10 -> 12 changes config.peft=adalora, whose durations are shares of it"):
    train.train(make_run("classify", peft=shares, total_steps=12, **constant), tmp_path / "shares")


def test_a_choice_that_a_skipped_step_took_back_is_made_at_the_next():
  params, state, update = draw(0), PEFT.init_state(draw(0)), jax.jit(PEFT.after_update)
  for step in (7, 10, 11):  # the last choice is due after step number 9, which overflowed
    params, state = update(params, draw(step), state, jnp.int32(step))
    count = sum(np.count_nonzero(x) for name, x in tree.flatten(params).items() if name.endswith("lambda"))
    assert count == (16 if step == 7 else 8)


def test_what_was_pruned_is_zero_in_an_average_too():
  moved = tree.flatten(draw(1))
  moved = {name: jnp.where(jnp.arange(4) < 2, x, 0) if name.endswith("lambda") else x for name, x in moved.items()}
  found = tree.flatten(PEFT.after_average(draw(2), tree.unflatten(moved)))
  for name, x in tree.flatten(draw(2)).items():
    np.testing.assert_array_equal(found[name], np.where(np.arange(4) < 2, x, 0) if name.endswith("lambda") else x)


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "ema_rate": 0.9}, {"name": "schedule_free"}])
def test_an_averaged_run_reports_the_ranks_that_are_left(optimizer, tmp_path):
  peft = {"name": "adalora", "initial_rank": 4, "target_rank": 2, "prune_from": 0, "prune_until": 4, "prune_every": 1}
  train.train(make_run("classify", peft=peft, optimizer=optimizer | {"learning_rate": 1e-2}, total_steps=6), tmp_path)
  ranks = json.loads((tmp_path / "summary.json").read_text())["peft"]
  assert np.mean(list(ranks.values())) == 2
