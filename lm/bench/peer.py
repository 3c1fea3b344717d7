"""A run as transformers and peft would train it: what `tools.bench` and experiments compare with.

Weights, batches, rates and decay are those of the run; rows of a classifier are cut to the longest of their batch, which is
what a collator that pads as needed gives, and those that are empty are left out. Packed rows go in whole, without the mask
that keeps their documents apart, which is the fast way of transformers. Dropout is the run's, so that attention has none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import device, saved, tree
from lm.bench import hf
from lm.config import ConfigError
from lm.data.loader import EvalLoader
from lm.optim.adamw import Adamw
from lm.peft.peft import Peft
from lm.pretrained import Pretrained, save_pretrained
from lm.run import Run
from lm.shapes import INPUTS, Batch
from lm.tasks.causal import Causal
from lm.tasks.classify import Classify
from lm.tasks.mlm import Mlm

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
HEADS = r"^(classifier|score|head|\w+\.pooler)"
UNWRAPPED = {"Full": "", "Head": HEADS, "Bitfit": rf"{HEADS}|bias$"}
# transformers' model by our task.
MODELS = {
  Classify: "AutoModelForSequenceClassification",
  Causal: "AutoModelForCausalLM",
  Mlm: "AutoModelForMaskedLM",
}
IGNORED = -100  # a target without a weight, in torch


def make_recipe(run: Run, folder: Path) -> hf.Recipe:
  """How torch trains what a run does.

  Args:
    folder: takes the run's initial weights in transformers' format, where its base is no directory of that.

  Raises:
    ConfigError: torch, transformers or peft is not installed; a run that they have no counterpart of.
  """
  check(run)
  task, optimizer = _task(run), run.program.spec.optimizer
  if not isinstance(optimizer, Adamw):
    raise ConfigError("peer: compares runs with config.optimizer=adamw")
  for setting, value in _without_counterpart(run, task, optimizer).items():
    if value:
      raise ConfigError(f"peer: has no counterpart of {setting}={value!r}; leave it unset")
  method = _method(run.program.spec.peft, run.total_steps)
  if not isinstance(task, Classify) and type(run.program.spec.peft).__name__ != "Full":
    raise ConfigError(f"peer: trains all parameters of task {type(task).__name__.lower()}; set config.peft=full")
  directory = find_directory(run) or _write(run, method, folder)
  return hf.Recipe(
    directory=directory,
    model_class=MODELS[type(task)],
    num_labels=len(task.labels) if isinstance(task, Classify) else 0,
    method=method,
    trains="" if method else UNWRAPPED[type(run.program.spec.peft).__name__],
    dropout_rate=run.program.spec.model.cfg.dropout_rate,
    weight_decay=optimizer.weight_decay,
    b1=optimizer.b1,
    b2=optimizer.b2,
    eps=optimizer.eps,
    clip_norm=optimizer.clip_norm,
    seed=run.config.seed,
    cores=device.num_cores(),
  )


def check(run: Run) -> None:
  """Raises ConfigError where torch is not installed, or would do other work than the run: it computes in fp32 on a CPU."""
  hf.check_installed()
  platform, dtype = run.mesh.devices.flatten()[0].platform, run.program.spec.model.dtype
  if (platform, dtype) != ("cpu", "float32"):
    raise ConfigError(
      f"peer: computes in float32 on a CPU, and this run in {dtype} on {platform}; leave the peer out, or set JAX_PLATFORMS=cpu"
      " and config.dtype=float32"
    )


def find_directory(run: Run) -> str:
  """That of the run's base, as transformers reads it; "" without one, and of a workdir or an adapter."""
  base = run.base.workdir if run.base else None
  return str(base) if base and not saved.is_workdir(base) and (base / "config.json").is_file() else ""


def make_rows(run: Run, batch: Batch) -> hf.Rows:
  """What transformers' model takes of a batch."""
  arrays, targets = batch[INPUTS], batch[next(iter(run.tasks))]
  if isinstance(_task(run), Classify):
    return _classifier_rows(arrays, targets, run.program.spec.peft.num_virtual_tokens)
  tokens_BT, real_BT = arrays["tokens"].astype(np.int64), arrays["segment_ids"] > 0
  rows = {"input_ids": tokens_BT} | ({} if real_BT.all() else {"attention_mask": real_BT.astype(np.int64)})
  if "targets" in targets:
    labels_BT = np.where(targets["weights"] > 0, targets["targets"], IGNORED).astype(np.int64)
    return rows | {"labels": labels_BT, "shift_labels": labels_BT}  # of which transformers takes the second as they are
  labels_BT, (row, place) = np.full_like(tokens_BT, IGNORED), np.nonzero(targets["weights"])
  labels_BT[row, targets["masked_positions"][row, place]] = targets["labels"][row, place]
  return rows | {"labels": labels_BT}


def accuracy(trainer: hf.Trainer, run: Run, split: str) -> float:
  """Share of a split's rows whose label it finds."""
  config, (stream,) = run.config, run.config.all_streams
  data, right, count = run.load(stream, split), 0, 0
  for batch, _ in EvalLoader(data, batch_size=config.batch_size, seq_len=config.seq_len, buckets=config.length_buckets):
    rows = make_rows(run, batch)
    right += trainer.num_right(rows)
    count += len(rows["labels"])
  return right / count


def _without_counterpart(run: Run, task: Any, optimizer: Adamw) -> dict[str, Any]:
  """Settings that would give the two sides other work, by what they are where they are unset."""
  cfg = run.config
  return {
    "config.quantizer": cfg.quantizer and cfg.quantizer.name,
    "config.regularizer": cfg.regularizer and cfg.regularizer.name,
    "config.label_smoothing": cfg.label_smoothing,
    "config.z_loss": cfg.z_loss,
    "task.class_weights": getattr(task, "class_weights", ()),
    "optimizer.ema_rate": optimizer.ema_rate,
    "optimizer.rates": optimizer.rates,
    "optimizer.layer_decay": optimizer.layer_decay if optimizer.layer_decay < 1 else 0,
    "peft.dropout_rate": getattr(run.program.spec.peft, "dropout_rate", 0.0),
  }


def _task(run: Run) -> Any:
  tasks = list(run.tasks.values())
  if len(tasks) > 1 or type(tasks[0]) not in MODELS:
    names = ", ".join(type(task).__name__.lower() for task in tasks)
    raise ConfigError(f"peer: has no counterpart of task {names}; accepted are classify, causal, mlm")
  return tasks[0]


def _method(peft: Peft, total_steps: int) -> tuple[str, dict[str, Any]] | None:
  """peft's config class and options; None where none is needed."""
  name = type(peft).__name__
  if name in METHODS:
    kind, options = METHODS[name]
    return kind, options(peft, total_steps)
  if name not in UNWRAPPED:
    accepted = ", ".join(other.lower() for other in (*UNWRAPPED, *METHODS))
    raise ConfigError(f"peer: has no counterpart of config.peft={name.lower()}; accepted are {accepted}")
  return None


def _write(run: Run, method: Any, folder: Path) -> str:
  """The weights that the run starts with, for transformers."""
  if method:
    given = run.config.init_from
    raise ConfigError(f"peer: config.peft needs a base in Hugging Face's format; config.init_from={given!r} is none")
  state = run.init_state()
  params = jax.tree.map(np.asarray, tree.merge(state.params, state.frozen))
  save_pretrained(Pretrained(run.program.spec.model, params, tasks=run.tasks), folder)
  return str(folder)


def _classifier_rows(arrays: Any, targets: Any, num_reserved: int) -> hf.Rows:
  """Of the rows that count; num_reserved: positions in front, which peft adds by itself."""
  counted = np.flatnonzero(targets["weights"])
  longest = int((arrays["segment_ids"][counted] > 0).sum(1).max())
  cut = lambda x: np.ascontiguousarray(x[counted, num_reserved:longest]).astype(np.int64)
  rows = {"input_ids": cut(arrays["tokens"]), "attention_mask": cut(arrays["segment_ids"] > 0)}
  rows |= {"token_type_ids": cut(arrays["token_types"])} if "token_types" in arrays else {}
  return rows | {"labels": targets["label"][counted].astype(np.int64)}
