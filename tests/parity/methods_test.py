"""Methods of fine-tuning beside the peft library: equal hidden states, logits and gradients of the same leaves."""

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import plug, tree
from lm.interop import load_pretrained, settings, weights
from tests.parity import oracle
from tests.parity.agreement import random_tokens

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity
torch = oracle.torch
VOCAB = 120
TOKENS = random_tokens(np.random.default_rng(3), 2, 20, vocab=VOCAB)
INPUTS = {
  "tokens": TOKENS,
  "segment_ids": np.ones_like(TOKENS),
  "positions": np.broadcast_to(np.arange(20), TOKENS.shape),
  "row": np.arange(2),
}
# The same modules here and there, by the model; those whose input (IA)^3 scales come last.
OURS = {"bert-mlm": (".*(key|value|attention/out)", ".*ffn/down"), "llama-untied": (".*(key|value)", ".*ffn/down")}
THEIRS = {
  "bert-mlm": (r".*(key|value|attention\.output\.dense)", r".*layer\.\d\.output\.dense"),
  "llama-untied": (r".*(k_proj|v_proj)", r".*down_proj"),
}
# What peft calls our leaves; all but (IA)^3's own are the transpose of ours.
LEAVES = {
  "a": "lora_A", "b": "lora_B", "lambda": "lora_E", "magnitude": "lora_magnitude_vector", "scale": "ia3_l",
}  # fmt: skip


def config_of(method: str, name: str) -> Any:
  """The method as peft knows it."""
  targets, feedforward = THEIRS[name]
  both = f"({targets})|({feedforward})"
  if method == "ia3":
    return peft.IA3Config(target_modules=both, feedforward_modules=feedforward, init_ia3_weights=False)
  if method == "adalora":
    return peft.AdaLoraConfig(
      target_modules=both, init_r=4, target_r=2, lora_alpha=6, total_step=14, tinit=2, tfinal=4, deltaT=3, beta1=0.8, beta2=0.7
    )
  options = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}, "pissa": {"init_lora_weights": "pissa"}}
  return peft.LoraConfig(target_modules=both, r=3, lora_alpha=5, **options.get(method, {}))


def ours(method: str, name: str) -> Any:
  """The same of ours."""
  targets, feedforward = OURS[name]
  if method == "ia3":
    return plug.make("peft", plug.parse_plug("peft", {"name": "ia3", "targets": targets, "feedforward": feedforward}))
  values = {"name": "lora", "targets": f"({targets})|({feedforward})", "rank": 3, "alpha": 5.0}
  if method == "adalora":
    values = {"name": "adalora", "targets": values["targets"], "initial_rank": 4, "target_rank": 2, "alpha": 6.0}
    values |= {"prune_from": 2, "prune_until": 10, "prune_every": 3, "beta1": 0.8, "beta2": 0.7}
  options = {
    "dora": {"name": "dora"},
    "rslora": {"scaling": "alpha_over_sqrt_rank"},
    "pissa": {"init": "pissa"},
  }
  return plug.make("peft", plug.parse_plug("peft", values | options.get(method, {})))


@dataclasses.dataclass
class Pair:
  """A method on a model, there and here. places: (leaf's name, layer) here -> parameter's name there."""

  theirs: Any
  method: Any
  here: Any
  params: dict[str, Any]
  places: dict[tuple[str, int], str]

  def read(self, values: dict[str, Any]) -> dict[str, Any]:
    """Arrays of theirs by name, as leaves of ours."""
    found = {name: np.zeros(x.shape, np.float32) for name, x in self.params.items() if re.search("/(lora|ia3)/", name)}
    for (name, layer), theirs in self.places.items():
      array = values[theirs].detach().numpy()
      found[name][layer] = (array if name.endswith("scale") else array.T).reshape(found[name][layer].shape)
    return found

  def take(self) -> dict[str, Any]:
    """All parameters, with the leaves that the model there has now."""
    return tree.unflatten(self.params | self.read(dict(self.theirs.named_parameters())))


def pair(method: str, name: str, folder: Path) -> Pair:
  """The method on a random model, as it starts."""
  oracle.make(name, folder, vocab_size=VOCAB)
  torch.manual_seed(4)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of classes of transformers that peft calls by their former names
    theirs = peft.get_peft_model(oracle.load(name, folder), config_of(method, name)).eval()
  here, own = load_pretrained(folder), ours(method, name)
  boxes = {key: box.replace(value=tree.flatten(here.params)[key]) for key, box in tree.flatten(here.model.abstract).items()}
  params = tree.flatten(nn.unbox(own.attach(tree.unflatten(boxes), jax.random.key(0))))
  family = settings.nearest(here.model.cfg)
  of_kernels = {leaf.name.removesuffix("/kernel"): leaf for leaf in weights.leaves_of(family, here.model)}
  places = {}
  named = dict(theirs.named_parameters())
  for key in params:
    module, mark, leaf = re.match(r"(.*?)(?:/(lora|ia3)/default/(.*))?$", key).groups()
    if not mark:
      continue
    for (layer,), tensor in of_kernels[module].places():
      stem = f"base_model.model.{weights.model_name(family, tensor).removesuffix('.weight')}.{LEAVES[leaf]}.default"
      places[key, layer] = stem if stem in named else f"{stem}.weight"
  assert sorted(places.values()) == sorted(key for key in named if ".default" in key and "ranknum" not in key)
  return Pair(theirs, own, here, params, places)


def randomise(made: Pair) -> None:
  """Leaves that show, the same ones every time."""
  rng = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for key in made.places.values():
      parameter = dict(made.theirs.named_parameters())[key]
      kind = key.split(".default")[0].rsplit(".", 1)[1]
      around = {"ia3_l": 1.0, "lora_magnitude_vector": parameter.clone()}.get(kind, 0.0)
      parameter.copy_(around + (0.3 if parameter.ndim > 1 else 0.1) * torch.randn(parameter.shape, generator=rng))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3", "adalora"])
def test_hidden_states_logits_and_gradients_agree(method, name, tmp_path):
  made = pair(method, name, tmp_path)
  before = made.here.run(TOKENS)
  randomise(made)
  expected = oracle.outputs(made.theirs, TOKENS)
  (head, _), *_ = made.here.model.heads
  mix = np.random.default_rng(1).normal(size=expected["logits"].shape).astype(np.float32)

  def logits(params):
    out = made.here.model.hidden(params, INPUTS, intercept=made.method.intercept).hidden_BTD
    return made.here.model.logits(params, head, out, INPUTS["row"], intercept=made.method.intercept), out

  params = made.take()
  got, hidden = jax.jit(logits)(params)
  assert np.abs(before["logits"] - expected["logits"]).max() > 0.05
  np.testing.assert_allclose(got, expected["logits"], atol=1e-4)
  np.testing.assert_allclose(hidden, expected["hidden_states"][-1], atol=1e-4)
  merged = dataclasses.replace(made.here, params=made.method.merge(params)).run(TOKENS)
  for part in ("hidden_states", "logits"):
    np.testing.assert_allclose(merged[part], expected[part], atol=1e-4)

  (made.theirs(torch.as_tensor(TOKENS)).logits * torch.as_tensor(mix)).sum().backward()
  expected = made.read({key: parameter.grad for key, parameter in made.theirs.named_parameters() if parameter.grad is not None})
  found = tree.flatten(jax.jit(jax.grad(lambda params: (logits(params)[0] * mix).sum()))(params))
  for key, gradient in expected.items():
    np.testing.assert_allclose(found[key], gradient, atol=1e-4 * max(np.abs(gradient).max(), 1), err_msg=key)


@pytest.mark.parametrize("name", OURS)
def test_pissa_leaves_the_same_kernels_and_the_same_outputs(name, tmp_path):
  made = pair("pissa", name, tmp_path)
  expected = made.here.run(TOKENS)
  named = dict(made.theirs.named_parameters())
  for (key, layer), theirs in made.places.items():
    base = named[theirs.replace("lora_A.default", "base_layer").replace("lora_B.default", "base_layer")].detach().numpy()
    kernel = np.asarray(made.params[f"{key.split('/lora/')[0]}/kernel"][layer])
    np.testing.assert_allclose(kernel.reshape(base.T.shape), base.T, atol=1e-4)
  params = tree.unflatten(made.params)
  hidden = made.here.model.hidden(params, INPUTS, intercept=made.method.intercept).hidden_BTD
  np.testing.assert_allclose(hidden, expected["hidden_states"][-1], atol=1e-4)
  np.testing.assert_allclose(oracle.outputs(made.theirs, TOKENS)["logits"], expected["logits"], atol=1e-4)


def test_adalora_prunes_what_peft_prunes_and_has_its_penalty(tmp_path):
  made = pair("adalora", "bert-mlm", tmp_path)
  randomise(made)
  labels = torch.as_tensor(TOKENS)
  loss = lambda: float(made.theirs.base_model(torch.as_tensor(TOKENS), labels=labels).loss.detach())
  with_penalty = loss()
  made.theirs.peft_config["default"].orth_reg_weight = 0.0
  penalty = float(made.method.penalties(made.take())["orthogonality"])
  np.testing.assert_allclose(penalty, with_penalty - loss(), rtol=1e-4)
  own = {name: x for name, x in tree.flatten(made.take()).items() if "/lora/" in name}
  state, update = made.method.init_state(tree.unflatten(own)), jax.jit(made.method.after_update)
  rng = torch.Generator().manual_seed(9)
  named, kept = dict(made.theirs.named_parameters()), []
  for step in range(13):
    with torch.no_grad():
      for key in made.places.values():
        named[key].add_(0.05 * torch.randn(named[key].shape, generator=rng))
        named[key].grad = torch.randn(named[key].shape, generator=rng)
    params = made.read(named)
    grads = made.read({key: named[key].grad for key in made.places.values()})
    new, state = update(tree.unflatten(params), tree.unflatten(grads), state, jnp.int32(step))
    made.theirs.base_model.update_and_allocate(step + 1)
    after = made.read(named)
    for name, leaf in tree.flatten(new).items():
      np.testing.assert_array_equal(leaf, after[name], err_msg=f"{name} after step {step + 1}")
    kept.append(sum(np.count_nonzero(x) for name, x in after.items() if name.endswith("lambda")))
  num_products = 4 * 3
  assert kept[0] == 4 * num_products and kept[-3:] == [2 * num_products] * 3
  assert kept[-1] < kept[5] < kept[2] < kept[0]
