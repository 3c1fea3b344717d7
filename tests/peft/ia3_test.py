"""(IA)^3: what its vectors scale, where they stand, and what is refused."""

import jax.numpy as jnp
import pytest

from lm import tree
from lm.peft.ia3 import Ia3
from tests.conftest import make_run
from tests.contracts.peft_test import biased_run


def test_ia3_scales_outputs_with_their_bias_and_inputs_without():
  leaf = lambda *scale: {"ia3": {"default": {"scale": jnp.asarray(scale)}}}
  key = {"kernel": jnp.asarray([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.asarray([5.0, 6.0])}
  merged = Ia3().merge({"key": key | leaf([2.0, 3.0]), "down": key | leaf([2.0], [3.0])})
  assert merged["key"]["kernel"].tolist() == [[2.0, 6.0], [6.0, 12.0]]
  assert merged["key"]["bias"].tolist() == [10.0, 18.0]
  assert merged["down"]["kernel"].tolist() == [[2.0, 4.0], [9.0, 12.0]]
  assert merged["down"]["bias"].tolist() == [5.0, 6.0]


def test_ia3_has_a_vector_for_keys_values_and_the_hidden_layer():
  shapes = {name: x.shape for name, x in tree.flatten(biased_run("classify", "ia3").init_state().params).items()}
  path = "backbone/blocks/{}/ia3/default/scale".format
  own = {name: shape for name, shape in shapes.items() if "/ia3/" in name}
  assert own == {path("attention/key"): (2, 1, 32), path("attention/value"): (2, 1, 32), path("ffn/down"): (2, 64, 1)}


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ("targets=conv", "peft.targets='conv': matches no linear layer; there are .*backbone/blocks/attention/key"),
    ("feedforward=conv", "peft.feedforward='conv': matches no linear layer; there are .*backbone/blocks/ffn/down"),
    ("targets=.*", "peft.feedforward='.*ffn/down': matches backbone/blocks/ffn/down, as does peft.targets"),
  ],
)
def test_ia3_names_the_pattern_that_is_wrong(options, words):
  with pytest.raises(ValueError, match=words) as raised:
    make_run("classify", peft=f"ia3({options})")
  assert "\n" not in str(raised.value)
