"""The other side of a comparison: torch, transformers and peft, set up as their users do. No jax, so that it can have a
process of its own, in which neither library's threads and memory stand in the other's way.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from lm.bench.turns import timed
from lm.config import ConfigError

Rows = Mapping[str, np.ndarray]  # what the model is called with, by name: input_ids, labels, ...


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A model to train, and how."""

  directory: str  # config.json and weights in transformers' format
  model_class: str  # of transformers, AutoModelFor...
  num_labels: int  # of a classifier
  method: tuple[str, Mapping[str, Any]] | None  # peft's config class and its options
  trains: str  # a pattern of the parameters that train, where peft does not say
  dropout_rate: float  # but of attention, which has none
  weight_decay: float
  b1: float
  b2: float
  eps: float
  clip_norm: float
  seed: int
  cores: int


def check_installed() -> None:
  """Raises ConfigError, with what to install, where one of the libraries is missing."""
  if missing := [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]:
    raise ConfigError(f"peer: {missing[0]} is not installed; pip install -e '.[parity]' brings what is compared with")


class Trainer:
  """transformers' model in fp32 on the CPU, and torch's AdamW."""

  def __init__(self, recipe: Recipe):
    import torch
    import transformers

    torch.set_num_threads(recipe.cores)
    torch.manual_seed(recipe.seed)
    self._torch, self._clip, self._steps = torch, recipe.clip_norm, 0
    labels = {"num_labels": recipe.num_labels} if recipe.num_labels else {}
    cfg = transformers.AutoConfig.from_pretrained(recipe.directory, **labels)
    cfg.use_cache = False  # as transformers' own Trainer has it; peft's prefixes need none either
    for name, value in cfg.to_dict().items():
      if re.search("dropout|pdrop", name) and isinstance(value, int | float):
        setattr(cfg, name, 0.0 if name.startswith("att") else recipe.dropout_rate)
    with torch.device("cpu"):
      made = getattr(transformers, recipe.model_class).from_pretrained(recipe.directory, config=cfg, dtype=torch.float32)
    self.model = _tuned(made, recipe)
    trains = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
    self.num_trainable = sum(p.numel() for _, p in trains)
    decays = lambda name, p: p.ndim > 1 and "LayerNorm" not in name
    groups = [
      {"params": [p for name, p in trains if decays(name, p) == decayed], "weight_decay": recipe.weight_decay * decayed}
      for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    self._optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(recipe.b1, recipe.b2), eps=recipe.eps)

  def step(self, rows: Rows, learning_rate: float) -> float:
    """One optimizer step; returns the loss."""
    self.model.train()
    for group in self._optimizer.param_groups:
      group["lr"] = learning_rate
    loss = self.model(**self._tensors(rows)).loss
    self._optimizer.zero_grad()
    loss.backward()
    if self._clip:
      self._torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
    self._optimizer.step()
    self._steps += 1
    if prune := getattr(getattr(self.model, "base_model", None), "update_and_allocate", None):
      prune(self._steps)  # AdaLoRA, which reads the gradients that are still there
    return float(loss.detach())

  def num_right(self, rows: Rows) -> int:
    """How many rows of a classifier it finds the label of."""
    self.model.eval()
    inputs = self._tensors(rows)
    labels = inputs.pop("labels")
    with self._torch.no_grad():
      return int((self.model(**inputs).logits.argmax(-1) == labels).sum())

  def _tensors(self, rows: Rows) -> dict[str, Any]:
    return {name: self._torch.from_numpy(values) for name, values in rows.items()}


def _tuned(model: Any, recipe: Recipe) -> Any:
  """The model with peft's form of the method, or with those parameters trained that the recipe names."""
  if recipe.method:
    import peft

    kind, options = recipe.method
    return peft.get_peft_model(model, getattr(peft, kind)(task_type="SEQ_CLS", **options))
  for name, parameter in model.named_parameters():
    parameter.requires_grad = bool(re.search(recipe.trains, name))
  return model


class User:
  """transformers' model in use, in fp32 on the CPU."""

  def __init__(self, directory: str, model_class: str, cores: int):
    import torch
    import transformers

    torch.set_num_threads(cores)
    self._torch = torch
    with torch.device("cpu"):
      self.model = getattr(transformers, model_class).from_pretrained(directory, dtype=torch.float32).eval()
    self._directory = directory

  @functools.cached_property
  def _tokenizer(self) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(self._directory)

  def encode(self, texts: Sequence[str], batch_size: int, max_len: int) -> np.ndarray:
    """[N, D]: the mean of the last hidden states over a text's tokens, specials left out; batches of similar length."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    vectors: list[Any] = [None] * len(texts)
    with self._torch.inference_mode():
      for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = self._tokenizer(
          [texts[i] for i in chosen],
          padding=True,
          truncation=True,
          max_length=max_len,
          return_tensors="pt",
          return_special_tokens_mask=True,
        )
        counts = (inputs["attention_mask"] * (1 - inputs.pop("special_tokens_mask"))).unsqueeze(-1)
        hidden = self.model(**inputs).last_hidden_state
        means = (hidden * counts).sum(1) / counts.sum(1).clamp(min=1)
        for i, vector in zip(chosen, means.numpy(), strict=True):
          vectors[i] = vector
    return np.stack(vectors)

  def write(self, prompts_BT: np.ndarray, num_tokens: int) -> np.ndarray:
    """[B, num_tokens] likeliest tokens behind each prompt."""
    tokens = self._torch.from_numpy(prompts_BT)
    with self._torch.inference_mode():
      asked = {"attention_mask": self._torch.ones_like(tokens), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
      return self.model.generate(tokens, max_new_tokens=num_tokens, **asked)[:, tokens.shape[1] :].numpy()


_trainer: Trainer | None = None  # of this process, which has no other
_user: User | None = None


def start(recipe: Recipe) -> int:
  """Makes this process's trainer; returns how many parameters it trains."""
  global _trainer
  _trainer = Trainer(recipe)
  return _trainer.num_trainable


def train(batches: Sequence[Rows], learning_rates: Sequence[float]) -> float:
  """Trains a step a batch; returns the seconds that took."""
  assert _trainer is not None
  step = _trainer.step
  return timed(lambda: [step(rows, rate) for rows, rate in zip(batches, learning_rates, strict=True)])


def load(directory: str, model_class: str, cores: int) -> None:
  """Makes this process's model in use."""
  global _user
  _user = User(directory, model_class, cores)


def encode_timed(texts: Sequence[str], batch_size: int, max_len: int) -> float:
  """Seconds of `User.encode`."""
  assert _user is not None
  return timed(functools.partial(_user.encode, texts, batch_size, max_len))


def write_timed(prompts_BT: np.ndarray, num_tokens: int) -> float:
  """Seconds of `User.write`."""
  assert _user is not None
  return timed(functools.partial(_user.write, prompts_BT, num_tokens))
