"""Overrides, plug-ins in one value, durations, and what may change on resume."""

import pytest

from lm import config, plug
from lm.config import ConfigError, Plug

FILE = "configs/tiny.py"


@pytest.mark.parametrize(
  ("overrides", "expected"),
  [
    ([("peft", "lora")], Plug("lora")),
    ([("peft", "lora(rank=16)")], Plug("lora", (("rank", 16),))),
    ([("peft", "lora"), ("peft.rank", "4")], Plug("lora", (("rank", 4),))),
    ([("peft", "lora(rank=16)"), ("peft.alpha", "1e1")], Plug("lora", (("rank", 16), ("alpha", 10.0)))),
    ([("peft", "lora(rank=16)"), ("peft.name", "head")], Plug("head")),
    ([("peft", "lora(rank=16)"), ("peft", "head")], Plug("head")),
  ],
)
def test_a_plugin_is_one_value(overrides, expected):
  assert config.load(FILE, overrides).peft == expected


def test_a_new_name_drops_the_options_of_the_old_one():
  assert dict(config.load(FILE).optimizer.options)
  assert config.load(FILE, {"optimizer": "adamw"}).optimizer == Plug("adamw")
  same = config.load(FILE, {"optimizer": "muon(momentum=0.9)"}).optimizer
  assert dict(same.options)["momentum"] == 0.9
  assert dict(same.options)["adam_learning_rate"] == 4e-3


@pytest.mark.parametrize(
  ("text", "value"), [("1e5", 100_000), ("100_000", 100_000), ("'3 epochs'", "3 epochs"), ("3 epochs", "3 epochs")]
)
def test_numbers_and_text_of_the_command_line(text, value):
  assert config.load(FILE, [("total_steps", text)]).total_steps == value


@pytest.mark.parametrize("bad", ["1.5", "true", "none"])
def test_an_integer_is_an_integer(bad):
  with pytest.raises(ConfigError, match="config.batch_size: expected an integer"):
    config.load(FILE, [("batch_size", bad)])


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (7, 7),
    ("10%", 100),
    ("2 epochs", 63),
    ("1M tokens", 489),
    ("800 examples", 100),
    ("0.5 epoch", 16),
    ("1%", 10),
    ("0.01%", 1),
  ],
)
def test_durations(value, expected):
  known = {"total_steps": 1000, "batch_size": 8, "seq_len": 256, "examples_per_epoch": 250}
  assert config.steps(value, "x", **known) == expected


def test_a_duration_that_cannot_be_resolved_is_an_error():
  with pytest.raises(ConfigError, match="epochs"):
    config.steps("2 epochs", "config.eval_every", total_steps=10)


def test_round_trip_and_hash():
  cfg = config.load("configs/tiny_mix.py", [("streams.docs.task.mask_rate", "0.4"), ("mesh.fsdp", "2")])
  assert config.from_dict(config.to_dict(cfg)) == cfg
  assert dict(cfg.all_streams["docs"].task.options)["mask_rate"] == 0.4
  assert len({cfg, config.from_dict(config.to_dict(cfg))}) == 1


def test_changes_know_what_may_change():
  old = config.load(FILE)
  new = config.load(FILE, {"log_every": 3, "optimizer.learning_rate": 0.5, "mesh.fsdp": 2})
  kinds = {name: kind for name, _, _, kind in config.changes(old, new)}
  assert kinds == {"log_every": "execution", "optimizer.learning_rate": "identity", "mesh.fsdp": "execution"}


def test_every_plugin_is_found_and_documented():
  for kind in ("task", "peft", "data", "evaluator", "optimizer"):
    assert plug.names(kind)
    assert all(plug.find(kind, name).__doc__ for name in plug.names(kind))
