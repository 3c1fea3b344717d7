"""Overrides, plug-ins in one value, bad input in one line, durations, and what may change on resume."""

import json
import subprocess
import sys

import pytest

from lm import config, duration, plug
from lm.config import ConfigError, Plug

FILE, MIX = "configs/tiny.py", "configs/tiny_mix.py"
RUN = {"task": "causal", "data": "memory"}


def write(folder, source: str) -> str:
  path = folder / "own.py"
  path.write_text(source)
  return str(path)


@pytest.mark.parametrize(
  ("overrides", "expected"),
  [
    ([], Plug("full")),
    ([("peft", "lora")], Plug("lora")),
    ([("peft", "lora()")], Plug("lora")),
    ([("peft", "lora(rank=16)")], Plug("lora", (("rank", 16),))),
    ([("peft", "lora"), ("peft.rank", "4")], Plug("lora", (("rank", 4),))),
    ([("peft", "{'name': 'lora', 'rank': 4}")], Plug("lora", (("rank", 4),))),
    ([("peft", Plug("lora", (("rank", 4),)))], Plug("lora", (("rank", 4),))),
    ([("peft", "lora(rank=16)"), ("peft.alpha", "1e1")], Plug("lora", (("rank", 16), ("alpha", 10.0)))),
    ([("peft", "lora(rank=16)"), ("peft.rank", "8")], Plug("lora", (("rank", 8),))),
    ([("peft", "lora(rank=16)"), ("peft", "lora")], Plug("lora", (("rank", 16),))),
    ([("peft", "lora(rank=16)"), ("peft", "lora(alpha=2)")], Plug("lora", (("rank", 16), ("alpha", 2)))),
    ([("peft", "lora(rank=16)"), ("peft.name", "lora")], Plug("lora", (("rank", 16),))),
    ([("peft", "lora(rank=16)"), ("peft.name", "head")], Plug("head")),
    ([("peft", "lora(rank=16)"), ("peft", "head")], Plug("head")),
  ],
)
def test_a_plugin_is_one_value(overrides, expected):
  assert config.load(FILE, overrides).peft == expected


@pytest.mark.parametrize("peft", ["'lora(rank=4)'", "dict(name='lora', rank=4)"])
def test_options_are_set_beside_those_of_the_file(tmp_path, peft):
  path = write(tmp_path, f"def get_config(arg):\n  return dict(task='causal', data='memory', peft={peft})")
  assert config.load(path, {"peft.alpha": 2}).peft == Plug("lora", (("alpha", 2), ("rank", 4)))
  assert config.load(path, {"peft": "lora"}).peft == Plug("lora", (("rank", 4),))
  assert config.load(path, {"peft": "head"}).peft == Plug("head")


def test_a_new_name_drops_the_options_of_the_old_one():
  assert dict(config.load(FILE).optimizer.options)
  assert config.load(FILE, {"optimizer": "adamw"}).optimizer == Plug("adamw")
  same = config.load(FILE, {"optimizer": "muon(momentum=0.9)"}).optimizer
  assert dict(same.options)["momentum"] == 0.9
  assert dict(same.options)["adam_learning_rate"] == 0.016


def test_an_option_that_a_later_flag_drops_is_an_error():
  with pytest.raises(ConfigError, match="config.peft.rank=4: dropped .* name before its options"):
    config.load(FILE, [("peft.rank", "4"), ("peft", "lora")])


@pytest.mark.parametrize(
  ("text", "options"),
  [
    ("text(path=data/a.txt)", {"path": "data/a.txt"}),
    ("text(path='a, b.txt', unit=line)", {"path": "a, b.txt", "unit": "line"}),
    ("lora(targets=.*/(query|value), rank=8)", {"targets": ".*/(query|value)", "rank": 8}),
    ("lora(flag=true, other=False, third=none)", {"flag": True, "other": False, "third": None}),
    ("lora(layers=[1, [2, 3]], b=(4,))", {"layers": (1, (2, 3)), "b": (4,)}),
    ("lora(a=x=y, b='it)', c=-1.5)", {"a": "x=y", "b": "it)", "c": -1.5}),
  ],
)
def test_options_within_brackets(text, options):
  assert dict(config.parse_plug("peft", text).options) == options


def test_the_order_of_options_and_streams_means_nothing():
  assert Plug("a", (("x", 1), ("y", 2))) == Plug("a", (("y", 2), ("x", 1)))
  one, two = {"task": "mlm", "data": "memory"}, {"task": "causal", "data": "memory"}
  assert config.from_dict({"streams": {"a": one, "b": two}}) == config.from_dict({"streams": {"b": two, "a": one}})


@pytest.mark.parametrize(
  ("name", "text", "value"),
  [
    ("total_steps", "1e5", 100_000),
    ("total_steps", "100_000", 100_000),
    ("total_steps", "'3 epochs'", "3 epochs"),
    ("total_steps", "3 epochs", "3 epochs"),
    ("length_buckets", "128,256", (128, 256)),
    ("length_buckets", "(128,256)", (128, 256)),
    ("length_buckets", "[128, 256]", (128, 256)),
    ("length_buckets", "256", (256,)),
    ("length_buckets", "()", ()),
    ("tokens_per_device", "none", None),
    ("tokens_per_device", "auto", "auto"),
    ("tokens_per_device", "4096", 4096),
    ("init_seed", "None", None),
    ("model", "none", None),
    ("remat", "none", "none"),
    ("tokenizer", "2024", "2024"),
    ("tokenizer", "'bytes'", "bytes"),
    ("init_from", "runs/007", "runs/007"),
    ("mesh.fsdp", "2", config.Mesh(fsdp=2)),
    ("mesh", "{'tensor': 4}", config.Mesh(tensor=4)),
    ("evaluators", "none", ()),
  ],
)
def test_text_of_the_command_line_is_read_as_the_type_of_the_setting(name, text, value):
  assert getattr(config.load(FILE, [(name, text)]), name.split(".")[0]) == value


def test_overrides_reach_into_streams_and_evaluators():
  overrides = [("streams.docs.task.mask_rate", "0.2"), ("streams.docs.weight", "2"), ("streams.module.task.name", "causal")]
  overrides += [("streams.more.task", "mlm"), ("streams.more.data", "memory"), ("evaluators.a", "likelihood(stream=docs)")]
  cfg = config.load(MIX, [*overrides, ("evaluators.a.split", "test")])
  docs, module, more = (cfg.all_streams[name] for name in ("docs", "module", "more"))
  assert (docs.task, docs.weight) == (Plug("mlm", (("mask_rate", 0.2),)), 2.0)
  assert isinstance(docs.weight, float)
  assert module.task == Plug("causal")
  assert module.data == Plug("pydocs", (("label", "module"),))
  assert (more.task, more.weight) == (Plug("mlm"), 1.0)
  assert dict(cfg.evaluators) == {"a": Plug("likelihood", (("split", "test"), ("stream", "docs")))}


def test_evaluators_of_the_file_stay_when_one_changes():
  cfg = config.load(FILE, {"evaluators.validation.split": "test"})
  assert dict(cfg.evaluators) == {
    "compressors": Plug("compression", (("split", "validation"),)),
    "validation": Plug("likelihood", (("split", "test"),)),
  }


# (overrides, the start of the line, more words that it has)
BAD = [
  ("optimzer=adamw", "config.optimzer: unknown setting; did you mean 'optimizer'?", ""),
  ("optimzer.learning_rate=1", "config.optimzer: unknown setting; did you mean 'optimizer'?", ""),
  ("zzz=1", "config.zzz: unknown setting; there are seed, init_seed", ""),
  ("=1", "config.: unknown setting", ""),
  ("mesh.fsd=2", "config.mesh.fsd: unknown setting; did you mean 'fsdp'?", ""),
  ("seq_len.x=2", "config.seq_len.x: 'seq_len' has no settings below it", ""),
  ("peft.rank.x=2", "config.peft.rank.x: 'rank' has no settings below it", ""),
  ("batch_size=many", "config.batch_size: expected an integer, got 'many'", ""),
  ("batch_size=1.5", "config.batch_size: expected an integer, got 1.5", ""),
  ("batch_size=true", "config.batch_size: expected an integer, got True", ""),
  ("batch_size=none", "config.batch_size: expected an integer, got None", ""),
  ("batch_size=1e999", "config.batch_size: expected an integer, got inf", ""),
  ("batch_size=0", "config.batch_size=0: must be at least 1", ""),
  ("tokens_per_device=0", "config.tokens_per_device=0: must be at least 1", ""),
  ("tokens_per_device=x", "config.tokens_per_device='x': accepted are a number of tokens, 'auto' and none", ""),
  ("seed=-1", "config.seed=-1: must not be negative", ""),
  ("z_loss=-1", "config.z_loss=-1.0: must not be negative", ""),
  ("label_smoothing=1", "config.label_smoothing=1.0: must be at least 0 and below 1", ""),
  ("loss_chunk=-1", "config.loss_chunk=-1: must not be negative", ""),
  ("seq_len=1", "config.seq_len=1: must be at least 2", ""),
  ("learning_rate=1", "config.learning_rate: unknown setting; did you mean 'optimizer.learning_rate'?", ""),
  ("rank=1", "config.rank: unknown setting; did you mean 'peft.rank'?", ""),
  ("num_layers=1", "config.num_layers: unknown setting; did you mean 'model.num_layers'?", ""),
  ("label=a", "config.label: unknown setting; did you mean 'data.label'?", ""),
  ("split=test", "config.split: unknown setting; there are seed", ""),
  ("keep_checkpoints=0", "config.keep_checkpoints=0: must be at least 1", ""),
  ("length_buckets=128,64", "config.length_buckets=(128, 64): must rise", "config.seq_len=256"),
  ("length_buckets=64,128", "config.length_buckets=(64, 128): must rise", "config.seq_len=256"),
  ("length_buckets=256,256", "config.length_buckets=(256, 256): must rise", ""),
  ("length_buckets=a,b", "config.length_buckets: expected an integer, got 'a'", ""),
  ("length_buckets=64,true,256", "config.length_buckets: expected an integer, got True", ""),
  ("total_steps=0", "config.total_steps=0: must be at least 1", ""),
  ("total_steps=true", "config.total_steps: expected an integer or text, got True", ""),
  ("total_steps=3 fortnights", "config.total_steps='3 fortnights': expected", "epochs, tokens, examples, steps"),
  ("total_steps=1.2.3 epochs", "config.total_steps='1.2.3 epochs': expected", ""),
  ("total_steps=10%", "config.total_steps='10%': expected", "epochs, tokens"),
  ("total_steps=1e999 steps", "config.total_steps='1e999 steps': too large", ""),
  ("eval_every=3 epochs", "config.eval_every='3 epochs': expected", "%, steps"),
  ("dtype=float8", "config.dtype='float8': accepted are auto, float32, bfloat16, float16", ""),
  ("remat=all", "config.remat='all': accepted are none, dots, block, full, offload", ""),
  ("mesh.data=0", "config.mesh=(1, 0, 1, 1, 1, 1): sizes are 1 or more", ""),
  ("mesh.fsdp=-1", "config.mesh=(1, -1, -1, 1, 1, 1): sizes are 1 or more, and one of them may be -1", ""),
  ("mesh=2", "config.mesh: expected settings by name, got 2", ""),
  ("peft=5", "config.peft: expected a name", "got 5"),
  ("peft=", "config.peft: expected name or name(option=value, ...), got ''", ""),
  ("peft=none", "config.peft: expected a name", "got None"),
  ("peft=lora(rank=16", "config.peft: expected name or name(option=value, ...), got 'lora(rank=16'", ""),
  ("peft=lora(a=1)(b=2)", "config.peft: expected name or name(option=value, ...)", ""),
  ("peft=lora(16)", "config.peft: expected options as name=value, each once, got '16'", ""),
  ("peft=lora(rank=)", "config.peft: expected options as name=value, each once, got 'rank='", ""),
  ("peft=lora(rank=1, rank=2)", "config.peft: expected options as name=value, each once, got 'rank=2'", ""),
  ("peft.rank={}", "config.peft.rank: expected a number, text", "got {}"),
  ("peft.=1", "config.peft: '' is not the name of an option", ""),
  ("evaluators=likelihood", "config.evaluators: expected settings by name, got 'likelihood'", ""),
  ("evaluators.new.split=test", "config.evaluators.new: its name is not set", ""),
  ("evaluators.a/b=likelihood", "config.evaluators: 'a/b' is not a name of letters", ""),
  ("streams=3", "config.streams: expected settings by name, got 3", ""),
  ("streams.a.task=mlm", "config.streams.a.data: not set", ""),
  ("streams={'a': {'task': 'mlm', 'data': 'memory'}}", "config.streams: set together with config.task", "no effect"),
  ("task=none", "config.task: not set", "needs task and data, or streams"),
  ("data=none", "config.data: not set", "needs task and data, or streams"),
]


@pytest.mark.parametrize(("override", "start", "more"), BAD, ids=[override for override, *_ in BAD])
def test_bad_overrides_are_one_clear_line(override, start, more):
  with pytest.raises(ConfigError) as error:
    config.load(FILE, [tuple(override.split("=", 1))])
  line = str(error.value)
  assert line.startswith(start), line
  assert more in line
  assert "\n" not in line


@pytest.mark.parametrize(
  ("override", "line"),
  [
    ("streams.docs.weight=0", "config.streams.docs.weight=0.0: must be above 0"),
    ("streams.docs.weight=1e999", "config.streams.docs.weight=inf: must be above 0 and finite"),
    ("streams.docs.weight=heavy", "config.streams.docs.weight: expected a number or a list, got 'heavy'"),
    ("streams.docs.weight=()", "config.streams.docs.weight=(): must be 0 or more, one of them above 0, and finite"),
    ("streams.docs.weight=((0,1),(9,-1))", "config.streams.docs.weight=((0, 1.0), (9, -1.0)): must be 0 or more"),
    ("streams.docs.weight=((0,0),(9,0))", "config.streams.docs.weight=((0, 0.0), (9, 0.0)): must be 0 or more, one"),
    ("streams.docs.weight=((0,1,2),)", "config.streams.docs.weight: expected 2 values, got (0, 1, 2)"),
    ("streams.docs.weight=((5,1),)", "config.streams.docs.weight=((5, 1.0),): stages must begin at step 0"),
    ("streams.docs.weight=((0,1),(5,2),(5,3))", "config.streams.docs.weight=((0, 1.0), (5, 2.0), (5, 3.0)): stages must"),
    ("streams.docs.weight=((0,1),(-5,2))", "config.streams.docs.weight=((0, 1.0), (-5, 2.0)): stages must begin at"),
    ("streams.docs.weight=((0,1),(200,2))", "config.streams.docs.weight=((0, 1.0), (200, 2.0)): stages must begin at step 0"),
    ("streams.docs.weight=((0,1),('2 epochs',2))", "config.streams.docs.weight='2 epochs': expected a whole number of steps"),
    ("streams.docs.weihgt=2", "config.streams.docs.weihgt: unknown setting; did you mean 'weight'?"),
    ("streams.docs=none", "config.streams.docs: expected settings by name, got None"),
    ("task=mlm", "config.streams: set together with config.task or config.data"),
    ("length_buckets=128,256", "config.length_buckets=(128, 256): rows of several streams share one length"),
  ],
)
def test_bad_streams_are_one_clear_line(override, line):
  with pytest.raises(ConfigError) as error:
    config.load(MIX, [tuple(override.split("=", 1))])
  assert str(error.value).startswith(line)


def test_weights_in_stages_become_steps():
  weights = [("streams.docs.weight", "((0, 3), ('25%', 1), ('20k tokens', 0))"), ("streams.module.weight", "2")]
  cfg = config.load(MIX, [*weights, ("total_steps", 200), ("batch_size", 4), ("seq_len", 50)])
  assert config.weight_stages(cfg) == {"docs": ((0, 3.0), (50, 1.0), (100, 0.0)), "module": ((0, 2.0),)}
  assert config.from_dict(json.loads(json.dumps(config.to_dict(cfg)))) == cfg
  docs = config.weight_stages(cfg)["docs"]
  assert [duration.weight_at(docs, step) for step in (0, 49, 50, 99, 100, 199)] == [3.0, 3.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
  ("overrides", "line"),
  [
    ({"streams.module.weight": ((0, 1), (9, 0))}, "config.streams: no stream has a weight above 0 from step 9 on"),
    ({"total_steps": "3 epochs"}, "config.total_steps='3 epochs': an epoch has no fixed length where weights"),
  ],
)
def test_stages_that_leave_nothing_or_no_epoch_are_refused(overrides, line):
  with pytest.raises(ConfigError) as error:
    config.load(MIX, {"streams.docs.weight": ((0, 1), (9, 0)), **overrides})
  assert str(error.value).startswith(line)


@pytest.mark.parametrize(
  ("source", "words"),
  [
    ("x = 1", "has no function get_config"),
    ("import nothing_of_that_name", "ModuleNotFoundError"),
    ("def get_config(arg) return", "SyntaxError"),
    ("def get_config(): return {}", "TypeError"),
    ("def get_config(arg): raise ValueError('accepted is small')", "own.py:big: accepted is small"),
    ("def get_config(arg): return {}['x']", "KeyError"),
    ("def get_config(arg): return 1 / 0", "ZeroDivisionError"),
    ("def get_config(arg): return None", "must return a ConfigDict or a dict, got None"),
    ("def get_config(arg): return dict(task=dict(nam='mlm'), data='memory')", "config.task: its name is not set"),
    ("def get_config(arg): return dict(task='mlm', data=dict(name='memory', texts={'a'}))", "config.data.texts: expected"),
    ("def get_config(arg): return dict(task='mlm', data='memory', streams=[1])", "config.streams: expected settings by name"),
  ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, source, words):
  with pytest.raises(ConfigError) as error:
    config.load(write(tmp_path, source) + ":big")
  assert words in str(error.value)


@pytest.mark.parametrize(("path", "words"), [("configs/nothing.py", "no such file"), ("setup.cfg", "not a Python file")])
def test_a_missing_file_is_named(path, words):
  with pytest.raises(ConfigError, match=f"--config={path}: {words}"):
    config.load(path)


@pytest.mark.parametrize("path", ["configs/tiny_mlm", "configs/tiny_mlm:smoke", "configs/tiny_mln.py"])
def test_a_file_whose_name_is_nearly_right_is_told(path):
  with pytest.raises(ConfigError, match=f"--config={path}: no such file; did you mean 'configs/tiny_mlm.py'"):
    config.load(path)


def test_an_unknown_argument_is_named_once():
  with pytest.raises(ConfigError) as error:
    config.load(f"{FILE}:huge")
  assert str(error.value).count(FILE) == 1
  assert "huge" in str(error.value)


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (7, 7),
    (0, 1),
    ("10%", 100),
    ("2 epochs", 63),
    ("1M tokens", 489),
    ("800 examples", 100),
    ("1k examples", 125),
    ("1_600 examples", 200),
    ("0.5 epoch", 16),
    ("1e3 steps", 1000),
    ("1%", 10),
    ("0.01%", 1),
  ],
)
def test_durations(value, expected):
  known = {"total_steps": 1000, "batch_size": 8, "seq_len": 256, "examples_per_epoch": 250}
  assert duration.steps(value, "x", **known) == expected


@pytest.mark.parametrize(
  ("value", "known", "units"),
  [
    ("2 epochs", {"total_steps": 10}, "%, steps"),
    ("2 epochs", {"batch_size": 8, "examples_per_epoch": 0}, "examples, steps"),
    ("10%", {"batch_size": 8, "seq_len": 4}, "tokens, examples, steps"),
    ("soon", {}, "steps"),
    (2.5, {}, "steps"),
    (True, {}, "steps"),
  ],
)
def test_a_duration_that_cannot_be_resolved_names_the_units_that_can(value, known, units):
  with pytest.raises(ConfigError) as error:
    duration.steps(value, "config.x", **known)
  assert str(error.value).startswith(f"config.x={value!r}: expected ")
  assert str(error.value).endswith(f"with one of the units {units}")


@pytest.mark.parametrize("path", [FILE, f"{FILE}:smoke", "configs/tiny_mlm.py", MIX])
def test_round_trip_through_json_and_hash(path):
  cfg = config.load(path, {"peft": "lora(layers=[1, [2, 3]], alpha=0.5)", "mesh.fsdp": 2})
  again = config.from_dict(json.loads(json.dumps(config.to_dict(cfg))))
  assert again == cfg
  assert len({cfg, again}) == 1
  assert config.to_dict(again) == config.to_dict(cfg)
  assert config.changes(cfg, again) == []


def test_one_task_is_one_stream_of_its_name():
  cfg = config.from_dict(RUN)
  assert cfg.all_streams == {"causal": config.Stream(Plug("causal"), Plug("memory"))}


def test_changes_know_what_may_change():
  old = config.load(FILE)
  new = config.load(FILE, {"log_every": 3, "optimizer.learning_rate": 0.5, "mesh.fsdp": 2, "evaluators.x": "likelihood"})
  assert config.changes(old, new) == [
    ("optimizer.learning_rate", 0.012, 0.5, "identity"),
    ("mesh.fsdp", 1, 2, "execution"),
    ("log_every", 10, 3, "execution"),
    ("evaluators.x.name", None, "likelihood", "execution"),
  ]


def test_every_setting_says_what_it_means_and_whether_it_may_change():
  assert plug.comments(config.Config).keys() == config.FIELDS.keys()
  execution = {name for name, field in config.FIELDS.items() if field.metadata.get("kind") == "execution"}
  assert {"mesh", "remat", "tokens_per_device", "evaluators", "checkpoint_every", "log_every"} <= execution
  assert not {"seed", "model", "task", "data", "peft", "optimizer", "total_steps", "batch_size", "dtype"} & execution


def test_reading_a_config_needs_no_jax():
  code = f"import sys; from lm import config; config.load({FILE!r}); sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_an_argument_a_file_takes_its_own_default(tmp_path):
  (tmp_path / "own.py").write_text("def get_config(arg='mlm'): return dict(task=arg, data='memory')")
  tasks = [config.load(str(tmp_path / f"own.py{arg}"), {}).task.name for arg in ("", ":", ":causal")]
  assert tasks == ["mlm", "mlm", "causal"]
