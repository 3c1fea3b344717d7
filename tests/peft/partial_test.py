"""Which layers train, what frozen ones keep, when they unfreeze, and what is said of patterns that choose nothing."""

import jax
import numpy as np
import pytest

from lm import saved, train, tree
from lm.peft.partial import Partial
from tests.conftest import SIZES, make_run

DEEP = {"name": "bert-tiny", **SIZES, "num_layers": 4}
BLOCKS = "backbone/blocks/"


def snapshots(steps, optimizer="adamw", kind="classify", **settings):
  """Parameters by name before the first step and after each, and the run."""
  rule = {"name": optimizer, "learning_rate": 3e-3, "warmup_steps": 0, "schedule": "constant"}
  run = make_run(kind, model=DEEP, optimizer=rule, **settings)
  run.program.compile(run.loader.shapes(), [])
  state = run.init_state()
  copy = lambda state: {k: np.array(x) for k, x in tree.flatten(tree.merge(state.params, state.frozen)).items()}
  found = [copy(state)]
  for step in range(steps):
    state, _ = run.program.train(state, run.loader.batch(step), run.noise_rng)
    found.append(copy(state))
  return found, run


def moved(before, after):
  """Names that changed; of stacked leaves, {name: [L]}."""
  changed = lambda a, b, axes: (a.view(np.uint32) != b.view(np.uint32)).any(axis=axes)
  stacked = {name: changed(x, after[name], tuple(range(1, x.ndim))) for name, x in before.items() if name.startswith(BLOCKS)}
  return {name for name, x in before.items() if changed(x, after[name], None)}, stacked


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor", "schedule_free"])
def test_frozen_layers_keep_every_bit_under_every_optimizer(optimizer):
  (before, *_, after), run = snapshots(3, optimizer, peft={"name": "partial", "train": ("backbone/blocks/.*@1:3",)})
  names, layers = moved(before, after)
  assert names == {name for name in before if name.startswith((BLOCKS, "head_"))}
  assert {name: value.tolist() for name, value in layers.items()} == {name: [False, True, True, False] for name in layers}
  frozen = {name: x for name, x in before.items() if name not in names}
  halves = {name: x for name, x in before.items() if name.startswith(BLOCKS)}
  total, trains = sum(x.size for x in before.values()), run.program.num_params
  assert trains["total"] == total
  assert trains["trainable"] == total - sum(x.size for x in frozen.values()) - sum(x.size for x in halves.values()) // 2


def test_the_first_pattern_that_matches_decides_and_heads_train_unless_one_says_no():
  train = ("backbone/.*/scale@none", f"{BLOCKS}ffn/.*@-1:", "backbone/embed/.*", "head_classify/pooler/.*@none")
  (before, after), _ = snapshots(1, peft={"name": "partial", "train": train}, kind="classify")
  names, layers = moved(before, after)
  up, table, out = f"{BLOCKS}ffn/up/kernel", "backbone/embed/embedding", "head_classify/out/kernel"
  assert {up, f"{BLOCKS}ffn/down/kernel", table, out} <= names
  assert not any(name.startswith("head_classify/pooler/") or name.endswith("/scale") for name in names)
  assert layers[up].tolist() == [False, False, False, True]
  assert not layers[f"{BLOCKS}attention/query/kernel"].any()


def test_layers_unfreeze_from_the_top_after_the_heads_each_at_its_step():
  peft = {"name": "partial", "train": ("backbone/.*",), "unfreeze_every": 2}
  found, run = snapshots(11, peft=peft)
  for step, (before, after) in enumerate(zip(found[:-1], found[1:], strict=True)):
    names, layers = moved(before, after)
    assert "head_classify/out/kernel" in names
    expected = [step >= 2 * (4 - layer) for layer in range(4)]
    assert layers[f"{BLOCKS}ffn/up/kernel"].tolist() == layers[f"{BLOCKS}ffn_norm/scale"].tolist() == expected
    assert ("backbone/embed/embedding" in names) == (step >= 10)
    assert "backbone/final_norm/scale" in names
  assert run.program.num_params["trainable"] == run.program.num_params["total"]
  assert len([key for key in run.program._compiled if key[0] == "train"]) == len(run.loader.shapes())


def test_with_accumulation_the_same_layers_unfreeze():
  settings = {"peft": {"name": "partial", "unfreeze_every": 1}, "optimizer": "sgd"}
  (_, *_, alone), _ = snapshots(3, **settings)
  (_, *_, parts), run = snapshots(3, tokens_per_device=128, **settings)
  assert run.program.spec.accumulation == 4
  for name in alone:
    np.testing.assert_allclose(parts[name], alone[name], atol=1e-5, err_msg=name)


def test_a_run_that_was_interrupted_unfreezes_at_the_same_steps_on_its_base(tmp_path):
  train.train(make_run("mlm", total_steps=1), tmp_path / "base")
  peft = {"name": "partial", "train": ("backbone/.*", "head_classify/.*"), "unfreeze_every": 2}  # a head the base lacks
  optimizer = {"name": "adamw", "layer_decay": 0.8, "rates": ("head_.*: 2",)}
  settings = {"model": None, "tokenizer": "", "init_from": str(tmp_path / "base"), "total_steps": 5, "eval_every": 5}
  start = lambda name, **stop: train.train(
    make_run("classify", peft=peft, optimizer=optimizer, **settings), tmp_path / name, **stop
  )
  unbroken, calls = start("whole"), iter(range(1, 9))
  assert start("parts", stop=lambda: next(calls) > 3)["step"] == 3
  resumed = start("parts")
  assert (resumed["loss_sha256"], resumed["params_sha256"]) == (unbroken["loss_sha256"], unbroken["params_sha256"])
  (_, base), (_, tuned) = (saved.load_params(tmp_path / name) for name in ("base", "parts"))
  changed = (base[f"{BLOCKS}ffn/up/kernel"] != tuned[f"{BLOCKS}ffn/up/kernel"]).any(axis=(1, 2))
  assert changed.tolist() == [True, True]
  np.testing.assert_array_equal(base["backbone/embed/embedding"], tuned["backbone/embed/embedding"])  # from step 6 on
  assert tuned["head_classify/out/kernel"].any()


def test_a_mesh_moves_the_same_layers():
  settings = {"peft": {"name": "partial", "train": ("backbone/blocks/.*@2:",), "unfreeze_every": 1}}
  (_, *_, alone), _ = snapshots(3, **settings)
  (before, *_, split), _ = snapshots(3, devices=8, mesh={"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2}, **settings)
  assert moved(before, split)[1][f"{BLOCKS}ffn/up/kernel"].tolist() == [False, False, True, True]
  for name in ("head_classify/out/kernel", f"{BLOCKS}ffn/up/kernel"):
    np.testing.assert_allclose(split[name], alone[name], atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"train": ()}, "peft.train=(): must have a pattern; to train heads only, use peft='head'"),
    ({"train": ("a@6",)}, "peft.train='a@6': expected 'PATTERN', 'PATTERN@START:STOP' or 'PATTERN@none'"),
    ({"train": ("@6:",)}, "peft.train='@6:': expected 'PATTERN', 'PATTERN@START:STOP' or 'PATTERN@none'"),
    ({"train": ("a@",)}, "peft.train='a@': expected 'PATTERN', 'PATTERN@START:STOP' or 'PATTERN@none'"),
    ({"train": ("a@1:2:3",)}, "peft.train='a@1:2:3': expected 'PATTERN', 'PATTERN@START:STOP' or 'PATTERN@none'"),
    ({"train": ("(a",)}, "peft.train='(a': '(a' is no regular expression: missing ), unterminated subpattern at position 0"),
    ({"unfreeze_every": -1}, "peft.unfreeze_every=-1: must not be negative"),
  ],
)
def test_bad_options_are_one_line(options, message):
  with pytest.raises(ValueError) as raised:
    Partial(**options)
  assert str(raised.value) == message


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"train": ("backbone/bloks/.*@1:",)}, "peft.train: pattern 'backbone/bloks/.*' matches none of the parameters: backbone/"),
    ({"train": ("backbone/.*", "backbone/embed/.*")}, "peft.train='backbone/embed/.*': patterns before it match all"),
    (
      {"train": ("backbone/blocks/.*@4:",)},
      "peft.train='backbone/blocks/.*@4:': has no layer or leaves the model's, which are 0:4",
    ),
    ({"train": ("backbone/blocks/.*@2:5",)}, "peft.train='backbone/blocks/.*@2:5': has no layer or leaves the model's"),
    ({"train": ("backbone/blocks/.*@-5:",)}, "peft.train='backbone/blocks/.*@-5:': has no layer or leaves the model's"),
    ({"train": ("backbone/blocks/.*@3:1",)}, "peft.train='backbone/blocks/.*@3:1': has no layer or leaves the model's"),
    (
      {"train": ("backbone/.*@1:",)},
      "peft.train='backbone/.*@1:': parameter 'backbone/embed/embedding' is not one of the layers",
    ),
    ({"train": (".*@none",)}, "config.peft=.*: no parameter trains"),
    (
      {"train": ("head_.*@none", "backbone/blocks/.*"), "unfreeze_every": 3},
      r"config.peft=.*: no parameter trains before step 3$",
    ),
  ],
)
def test_patterns_that_choose_nothing_are_one_line(options, message):
  literal = message if message.startswith("config") else message.replace("(", r"\(").replace("*", r"\*")
  with pytest.raises(ValueError, match=f"^{literal}") as raised:
    make_run("classify", model=DEEP, peft={"name": "partial", **options})
  assert "\n" not in str(raised.value)


def test_options_are_read_from_a_command_line():
  run = make_run("classify", model=DEEP, peft="partial(train=backbone/.*/bias@none,unfreeze_every=2)".replace("bias", "scale"))
  assert run.program.spec.peft == Partial(("backbone/.*/scale@none",), 2)
  assert jax.tree.leaves(run.program.abstract.params)
