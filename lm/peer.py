"""The same fine-tuning by torch, transformers and peft, on a run's own batches: what this code is compared with, side by side.

Only `tools.bench` and experiments ask for it. Weights, batches, rates and decay are those of the run; rows are cut to the
longest of their batch, which is what a collator that pads as needed gives. Dropout is each library's own.
"""

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lm import device, sharding
from lm.config import ConfigError
from lm.data.loader import EvalLoader
from lm.optim.adamw import Adamw
from lm.peft.peft import Peft
from lm.run import Run
from lm.shapes import INPUTS, Batch

# What peft calls a method: its config class, and what that takes, by our method and the number of steps. Targets are left to
# peft: those of its authors.
Options = Callable[[Any, int], dict[str, Any]]
METHODS: dict[str, tuple[str, Options]] = {
  "Lora": ("LoraConfig", lambda own, steps: {"r": own.rank, "lora_alpha": own.alpha}),
  "Dora": ("LoraConfig", lambda own, steps: {"r": own.rank, "lora_alpha": own.alpha, "use_dora": True}),
  "Adalora": (
    "AdaLoraConfig",
    lambda own, steps: (
      {"init_r": own.initial_rank, "target_r": own.target_rank, "lora_alpha": own.alpha, "total_step": steps}
      | {"tinit": own.prune_from, "tfinal": steps - own.prune_until, "deltaT": own.prune_every}
      | {"beta1": own.beta1, "beta2": own.beta2, "orth_reg_weight": own.orthogonality}
    ),
  ),
  "Ia3": ("IA3Config", lambda own, steps: {}),
  "Prefix": ("PrefixTuningConfig", lambda own, steps: {"num_virtual_tokens": own.num_prefix}),
  "Prompt": ("PromptTuningConfig", lambda own, steps: {"num_virtual_tokens": own.num_virtual_tokens}),
}
# Methods that need no peft: which of the model's parameters train.
HEADS = r"^(classifier|\w+\.pooler)"
UNWRAPPED = {"Full": "", "Head": HEADS, "Bitfit": rf"{HEADS}|bias$"}


class Peer:
  """transformers' classifier from the run's base, and torch's AdamW.

  Raises:
    ConfigError: torch, transformers or peft is not installed; a run that they have no counterpart of.
  """

  def __init__(self, run: Run):
    torch, transformers, peft = _libraries()
    if [type(task).__name__ for task in run.tasks.values()] != ["Classify"] or run.base is None:
      raise ConfigError("peer: compares a run of task classify that starts from a Hugging Face directory (config.init_from)")
    if run.program.spec.model.quantizer:
      raise ConfigError("peer: has no counterpart of config.quantizer; leave it unset")
    optimizer = run.program.spec.optimizer
    if not isinstance(optimizer, Adamw) or optimizer.ema_rate:
      raise ConfigError("peer: compares runs with config.optimizer=adamw, without ema_rate")
    ((self._key, task),) = run.tasks.items()
    torch.set_num_threads(device.num_cores())
    torch.manual_seed(run.config.seed)
    self._torch, self._run = torch, run
    with torch.device("cpu"):
      made = transformers.AutoModelForSequenceClassification.from_pretrained(
        run.base.workdir, num_labels=len(task.labels), dtype=torch.float32
      )
    self.model = _tuned(made, run.program.spec.peft, peft, run.total_steps)
    trains = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
    self.num_trainable = sum(p.numel() for _, p in trains)
    decays = lambda name: not name.endswith("bias") and "LayerNorm" not in name
    groups = [
      {"params": [p for name, p in trains if decays(name) == decayed], "weight_decay": optimizer.weight_decay * decayed}
      for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    self._optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps)
    self._clip = optimizer.clip_norm
    self._steps = 0

  def step(self, batch: Batch) -> float:
    """One optimizer step; returns the loss."""
    self.model.train()
    for group in self._optimizer.param_groups:
      group["lr"] = float(self._run.schedule(self._steps))
    inputs, labels = self._tensors(batch)
    loss = self.model(**inputs, labels=labels).loss
    self._optimizer.zero_grad()
    loss.backward()
    if self._clip:
      self._torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
    self._optimizer.step()
    self._steps += 1
    if prune := getattr(getattr(self.model, "base_model", None), "update_and_allocate", None):
      prune(self._steps)  # AdaLoRA, which reads the gradients that are still there
    return float(loss.detach())

  def accuracy(self, split: str) -> float:
    """Share of a split's rows whose label it finds."""
    self.model.eval()
    config, (stream,) = self._run.config, self._run.config.all_streams
    data, right, count = self._run.load(stream, split), 0, 0
    with self._torch.no_grad():
      for batch, _ in EvalLoader(data, batch_size=config.batch_size, seq_len=config.seq_len, buckets=config.length_buckets):
        inputs, labels = self._tensors(batch)
        right += int((self.model(**inputs).logits.argmax(-1) == labels).sum())
        count += len(labels)
    return right / count

  def _tensors(self, batch: Batch) -> tuple[dict[str, Any], Any]:
    """What the model takes, and the labels, of the rows that count."""
    arrays, targets = batch[INPUTS], batch[self._key]
    counted = np.flatnonzero(targets["weights"])
    longest = int((arrays["segment_ids"][counted] > 0).sum(1).max())
    reserved = self._run.program.spec.peft.num_virtual_tokens  # in front; peft adds its own
    tensor = lambda x: self._torch.from_numpy(np.ascontiguousarray(x[counted, reserved:longest]).astype(np.int64))
    inputs = {"input_ids": tensor(arrays["tokens"]), "attention_mask": tensor(arrays["segment_ids"] > 0)}
    if "token_types" in arrays:
      inputs["token_type_ids"] = tensor(arrays["token_types"])
    return inputs, self._torch.from_numpy(targets["label"][counted].astype(np.int64))


def measure(run: Run, rounds: int, steps: int) -> dict[str, Any]:
  """Examples per second of a run and of its peer, taking turns on the same batches; compilation is not counted.

  Returns:
    {"examples_per_sec": median over rounds, "peer_examples_per_sec": ..., "ratio": median of the rounds' ratios, "ratios": all}
  """
  peer = Peer(run)
  run.program.compile(run.loader.shapes(), [])
  state, rng = run.init_state(), run.noise_rng
  found: list[tuple[float, float]] = []
  for number in range(-1, rounds):
    batches = [run.loader.batch(number * steps + i) for i in range(steps)] if number >= 0 else _one_of_each_shape(run)

    def train() -> None:
      nonlocal state
      for batch in batches:  # noqa: B023 - called in this turn of the loop
        state, result = run.program.train(state, sharding.place(batch, run.mesh), rng)
      float(result["loss"])

    turns: list[Callable[[], Any]] = [train, lambda batches=batches: [peer.step(batch) for batch in batches]]
    seconds = [0.0, 0.0]
    for turn in (0, 1) if number % 2 else (1, 0):
      seconds[turn] = _seconds(turns[turn])
    if number >= 0:
      found.append((run.config.batch_size * steps / seconds[0], run.config.batch_size * steps / seconds[1]))
  ours, theirs = (statistics.median(values) for values in zip(*found, strict=True))
  ratios = [a / b for a, b in found]
  return {
    "examples_per_sec": round(ours, 1),
    "peer_examples_per_sec": round(theirs, 1),
    "ratio": round(statistics.median(ratios), 3),
    "ratios": [round(ratio, 3) for ratio in ratios],
    "trainable": run.program.num_params["trainable"],
    "peer_trainable": peer.num_trainable,
    "cores": device.num_cores(),
  }


def _one_of_each_shape(run: Run) -> list[Batch]:
  """A batch of every shape, to warm up: the first one of a shape takes memory anew and is up to three times as slow."""
  found: dict[tuple[int, ...], Batch] = {}
  for step in range(run.total_steps):
    batch = run.loader.batch(step)
    found.setdefault(batch[INPUTS]["tokens"].shape, batch)
  return list(found.values())


def train(run: Run, on_step: Callable[[int, float], None] = lambda step, loss: None) -> dict[str, Any]:
  """Fine-tunes the peer over the run's batches to its last step; {"accuracy" of validation before and after, "seconds"}."""
  peer = Peer(run)
  before, spent = peer.accuracy("validation"), 0.0
  for step in range(run.total_steps):
    batch = run.loader.batch(step)
    began = time.perf_counter()
    loss = peer.step(batch)
    spent += time.perf_counter() - began
    on_step(step + 1, loss)
  return {
    "step0_accuracy": before,
    "accuracy": peer.accuracy("validation"),
    "seconds": round(spent, 1),
    "examples_per_sec": round(run.total_steps * run.config.batch_size / spent, 1),
    "trainable": peer.num_trainable,
  }


def _seconds(function: Callable[[], Any]) -> float:
  began = time.perf_counter()
  function()
  return time.perf_counter() - began


def _libraries() -> tuple[Any, Any, Any]:
  try:
    import peft
    import torch
    import transformers
  except ImportError as error:
    raise ConfigError(
      f"peer: {error.name} is not installed; pip install -e '.[parity]' brings what is compared with"
    ) from error
  return torch, transformers, peft


def _tuned(model: Any, method: Peft, peft: Any, total_steps: int) -> Any:
  """The model with peft's form of the method, as its users set it up."""
  name = type(method).__name__
  if name in METHODS:
    kind, options = METHODS[name]
    given = options(method, total_steps)
    return peft.get_peft_model(model, getattr(peft, kind)(task_type="SEQ_CLS", **given))
  if name not in UNWRAPPED:
    accepted = ", ".join(other.lower() for other in (*UNWRAPPED, *METHODS))
    raise ConfigError(f"peer: has no counterpart of config.peft={name.lower()}; accepted are {accepted}")
  for key, parameter in model.named_parameters():
    parameter.requires_grad = bool(re.search(UNWRAPPED[name], key))
  return model
