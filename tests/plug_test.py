"""Plug-ins are found by file name without importing them, and their options are checked against their fields."""

import dataclasses
import sys

import pytest

from lm import plug
from lm.models.transformer_config import TransformerConfig
from lm.plug import ConfigError, Plug

FILES = {
  "__init__.py": "",
  "peft.py": "raise AssertionError('the contract is no plug-in')",
  "span_qa.py": """
from __future__ import annotations
import dataclasses
from typing import Optional

@dataclasses.dataclass(frozen=True)
class SpanQa:
  path: str
  rank: int = 8
  alpha: float = 1.0
  merged: bool = False
  steps: int | str = "2%"
  limit: Optional[int] = None
  labels: tuple[str, ...] = ()
  layers: tuple[int, ...] = ()
  betas: tuple[float, float] = (0.9, 0.95)
  split: str = "train"
  run: object = None
""",
  "plain.py": """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Plain:
  pass
""",
  "broken.py": "raise AssertionError('imported')",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
  """Plug-ins of kind peft in a package of their own."""
  folder = tmp_path / "own_plugins"
  folder.mkdir()
  for name, source in FILES.items():
    (folder / name).write_text(source)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setitem(plug.PACKAGES, "peft", "own_plugins")
  yield
  for name in [name for name in sys.modules if name.split(".")[0] == "own_plugins"]:
    del sys.modules[name]


def span_qa(**options):
  return plug.make("peft", Plug("span_qa", tuple({"path": "a", **options}.items())))


def test_a_short_form_names_the_plug_in_and_its_options():
  for text, expected in (
    ("tfds:glue/sst2:2.0.0", {"name": "tfds", "dataset": "glue/sst2:2.0.0"}),
    ("hf:a/b", {"name": "hub", "repo": "a/b"}),
    (" hf:a/b:c-1 (max_documents=5)", {"name": "hub", "repo": "a/b", "config": "c-1", "max_documents": 5}),
  ):
    assert plug.parse_plug("config.data", text).to_dict() == expected
  with pytest.raises(ConfigError, match=r"config\.data='text:x': 'text' has no short form; those that have: tfds, hf$"):
    plug.parse_plug("config.data", "text:x")
  with pytest.raises(ConfigError, match="each once"):
    plug.parse_plug("config.data", "tfds:glue(dataset=c4)")


@pytest.mark.usefixtures("package")
def test_names_lists_files_and_imports_none_of_them():
  assert plug.names("peft") == ["broken", "plain", "span_qa"]
  assert "own_plugins.span_qa" not in sys.modules


@pytest.mark.usefixtures("package")
def test_the_class_is_the_file_name_in_camel_case():
  assert plug.find("peft", "span_qa").__name__ == "SpanQa"
  assert plug.make("peft", Plug("plain")) == plug.find("peft", "plain")()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
  ("option", "value", "expected"),
  [
    ("rank", 4, 4),
    ("rank", 4.0, 4),
    ("alpha", 3, 3.0),
    ("merged", True, True),
    ("steps", 10, 10),
    ("steps", "5%", "5%"),
    ("limit", None, None),
    ("limit", 3, 3),
    ("labels", ("a", "b"), ("a", "b")),
    ("labels", "a", ("a",)),
    ("labels", "a, b", ("a", "b")),
    ("layers", 3, (3,)),
    ("layers", (1, 2.0), (1, 2)),
    ("betas", (1, 0.5), (1.0, 0.5)),
  ],
)
def test_options_take_the_types_of_the_fields(option, value, expected):
  found = getattr(span_qa(**{option: value}), option)
  assert found == expected
  assert type(found) is type(expected)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
  ("option", "value", "line"),
  [
    ("rank", "many", "rank: expected an integer, got 'many'"),
    ("rank", True, "rank: expected an integer, got True"),
    ("rank", 1.5, "rank: expected an integer, got 1.5"),
    ("rank", None, "rank: expected an integer, got None"),
    ("alpha", "big", "alpha: expected a number, got 'big'"),
    ("alpha", False, "alpha: expected a number, got False"),
    ("merged", 1, "merged: expected true or false, got 1"),
    ("path", 7, "path: expected text, got 7; as text it is written \"'7'\""),
    ("steps", 0.5, "steps: expected an integer or text, got 0.5"),
    ("limit", "x", "limit: expected an integer or none, got 'x'"),
    ("labels", ("a", 1), "labels: expected text, got 1; as text it is written \"'1'\""),
    ("layers", "all", "layers: expected an integer, got 'all'"),
    ("layers", (1, True), "layers: expected an integer, got True"),
    ("betas", (0.9, 0.95, 0.99), "betas: expected 2 values, got (0.9, 0.95, 0.99)"),
  ],
)
def test_an_option_of_the_wrong_type_is_one_clear_line(option, value, line):
  with pytest.raises(ConfigError) as error:
    span_qa(**{option: value})
  assert str(error.value) == f"peft 'span_qa': {line}"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
  ("value", "line"),
  [
    (Plug("span_q"), "peft 'span_q': unknown; did you mean 'span_qa'? There are: broken, plain, span_qa"),
    (Plug("zzz"), "peft 'zzz': unknown; there are: broken, plain, span_qa"),
    (Plug("peft"), "peft 'peft': unknown; there are: broken, plain, span_qa"),
    (Plug("__init__"), "peft '__init__': unknown; there are: broken, plain, span_qa"),
    (Plug("plain", (("rank", 1),)), "peft 'plain' has no option 'rank'; it has: none"),
    (Plug("span_qa"), "peft 'span_qa': path is not set"),
  ],
)
def test_unknown_names_and_missing_options(value, line):
  with pytest.raises(ConfigError) as error:
    plug.make("peft", value)
  assert str(error.value) == line


@pytest.mark.usefixtures("package")
def test_an_unknown_option_names_the_nearest_and_all():
  with pytest.raises(ConfigError) as error:
    span_qa(ranke=1)
  assert str(error.value).startswith("peft 'span_qa' has no option 'ranke'; did you mean 'rank'? It has: path, rank,")


@pytest.mark.parametrize(("kind", "name", "option"), [("data", "pydocs", "split"), ("evaluator", "likelihood", "run")])
def test_what_the_caller_gives_is_no_option(kind, name, option):
  assert option not in plug.fields(kind, name)
  with pytest.raises(ConfigError, match=f"has no option '{option}'"):
    plug.make(kind, Plug(name, ((option, "test"),)))


@dataclasses.dataclass
class Commented:
  a: int = 1  # [tokens] per row
  b: str = "# no comment"
  c: str = "x#y"  # with # inside

  def method(self):
    value: int = 2
    return value  # not a field


def test_the_comment_behind_a_field_says_what_it_means():
  found = plug.comments(Commented)
  assert (found["a"], found["c"]) == ("[tokens] per row", "with # inside")
  assert "b" not in found and "value" not in found


@pytest.mark.usefixtures("package")
def test_extra_arguments_yield_to_options():
  value = Plug("span_qa", (("path", "a"),))
  made = plug.make("peft", value, split="test", run="the run")
  assert (made.split, made.run) == ("test", "the run")
  assert plug.make("peft", Plug("span_qa", (*value.options, ("split", "own"))), split="test").split == "own"


def test_a_model_is_a_preset_with_fields_changed():
  preset = plug.make("model", Plug("gpt2"))
  assert isinstance(preset, TransformerConfig)
  changed = plug.make("model", Plug("gpt2", (("num_layers", 4), ("rope_base", 500))))
  assert (changed.num_layers, changed.rope_base) == (4, 500.0)
  assert changed.model_dim == preset.model_dim
  assert preset.num_layers == 12


@pytest.mark.parametrize(
  ("kind", "value", "start"),
  [
    ("model", Plug("gpt3"), "model 'gpt3': unknown; did you mean 'gpt2'? There are: "),
    ("model", Plug("gpt2", (("num_layer", 4),)), "model 'gpt2' has no option 'num_layer'; did you mean 'num_layers'? It has: "),
    ("model", Plug("gpt2", (("num_layers", 4.5),)), "model 'gpt2': num_layers: expected an integer, got 4.5"),
    ("model", Plug("gpt2", (("causal", 1),)), "model 'gpt2': causal: expected true or false, got 1"),
    ("optimizer", Plug("adamm"), "optimizer 'adamm': unknown; did you mean 'adamw'? There are: "),
    ("optimizer", Plug("adamw", (("b1", "x"),)), "optimizer 'adamw': b1: expected a number, got 'x'"),
    ("optimizer", Plug("optimizer"), "optimizer 'optimizer': unknown"),
  ],
)
def test_models_and_optimizers_have_the_same_errors(kind, value, start):
  with pytest.raises(ConfigError) as error:
    plug.make(kind, value)
  assert str(error.value).startswith(start)


@pytest.mark.parametrize("kind", ["task", "peft", "data", "evaluator", "optimizer"])
def test_every_plugin_is_found_and_documented(kind):
  assert plug.names(kind)
  assert all(plug.find(kind, name).__doc__ for name in plug.names(kind))
