"""What a frozen backbone costs, read from the compiled step: no gradient of its weights, no moments."""

import functools

import pytest

from lm import tree
from tests.conftest import SIZES, make_run

METHODS = ("head", "bitfit", "ia3", "lora(rank=1)", "dora(rank=1)", "adapter(bottleneck_dim=1)", "prefix(num_prefix=1)")


@functools.cache
def compiled(peft):
  """The run, and the train and the eval step of its first batch, compiled with every layer in sight of the count of FLOPs."""
  run = make_run("classify", peft=peft, model={"name": "bert-tiny", **SIZES, "bias": True}, scan_unroll=SIZES["num_layers"])
  batch = run.loader.batch(0)
  (key,) = run.tasks
  return run, batch, run.program.train_step(batch), run.program._eval_step(key, batch)


def flops(step):
  return step.cost_analysis()["flops"]


def test_a_step_under_a_frozen_backbone_without_additions_is_one_forward_pass():
  _, _, train, evaluation = compiled("head")
  assert flops(evaluation) < flops(train) < 1.01 * flops(evaluation)


@pytest.mark.parametrize("peft", METHODS)
def test_frozen_kernels_have_no_gradient(peft):
  run, batch, train, _ = compiled(peft)
  frozen = {name: leaf.size for name, leaf in tree.flatten(run.program.abstract.frozen).items()}
  kernels = sum(size for name, size in frozen.items() if name.startswith("backbone/blocks/") and name.endswith("/kernel"))
  of_gradients = 2 * batch["inputs"]["tokens"].size * kernels  # a multiplication and an addition per token and weight
  full = flops(compiled("full")[2])
  assert of_gradients > 0.2 * full
  assert flops(train) < full - of_gradients


@pytest.mark.parametrize("peft", METHODS)
def test_frozen_parameters_have_no_moments_among_the_arguments(peft):
  def rest(run, _, train, __):
    total, trainable = (run.program.num_params[name] for name in ("total", "trainable"))
    return train.memory_analysis().argument_size_in_bytes - 4 * total - 2 * 4 * trainable

  assert compiled(peft)[0].program.num_params["trainable"] < 0.2 * compiled(peft)[0].program.num_params["total"]
  assert rest(*compiled(peft)) == rest(*compiled("full"))
