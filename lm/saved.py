"""What was trained, read back: from the workdir of a run, a Hugging Face directory, or an adapter of peft beside its base.

All answer the same questions. An adapter is read as a Hugging Face directory in which some tensors are changed; what cannot be
merged (prefix, prompt) stays around the model, as with a workdir.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import checkpoint, device, files, hub, plug, record, sharding, tree
from lm.config import ConfigError, Plug, parse_plug
from lm.data import hf_tokenizer
from lm.data import tokenizer as tokenizers
from lm.data.answers import SPAN
from lm.data.tokenizer import Tokenizer
from lm.files import read_json
from lm.interop import adapter, sentence, settings, weights
from lm.models.model import Model
from lm.models.transformer_config import TransformerConfig
from lm.peft.peft import Peft
from lm.quantizers.quantizer import Quantizer
from lm.state import REFERENCE
from lm.tasks.tag import Tag
from lm.tasks.task import Task

# What a tokenizer of a Hugging Face directory is read from.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", *hf_tokenizer.SENTENCEPIECE, hf_tokenizer.SHIFTED)
# The task that reads a head of a Hugging Face checkpoint, by the head's kind; a classifier's is one of three, a tagger's has
# its tags. Whether a question may have no answer is not said there: it has one, as pipelines of transformers take it too.
TASKS = {"lm": Plug("causal"), "mlm": Plug("mlm"), "span": Plug("span_qa", (("answers", (SPAN,)),))}


def find(path_or_id: str, setting: str) -> Path:
  """The folder of a workdir, a Hugging Face checkpoint or an adapter, by its path or the hub's id.

  Raises:
    ConfigError: it is none of them; it names the setting.
  """
  if files.is_remote(path_or_id):
    folder = files.path(path_or_id, setting)
    if not is_workdir(folder):
      raise ConfigError(f"{setting}={path_or_id}: not the workdir of a run; a Hugging Face directory must be on this machine")
    return folder
  try:
    folder = hub.resolve(path_or_id)
  except ConfigError as error:
    raise ConfigError(f"{setting}={error}") from error
  if not any((folder / name).is_file() for name in record.MODEL_FILES):
    raise ConfigError(
      f"{setting}={path_or_id!r}: not the workdir of a run and no Hugging Face directory (no config.json there)"
    )
  return folder


def is_workdir(path: Path) -> bool:
  """Whether a run left its manifest there; a Hugging Face directory has none."""
  return (path / "manifest.json").is_file()


def find_adapted(path: Path) -> Path | None:
  """The base of an adapter: a folder as seen from the adapter's or from here, or an id. None where there is no adapter."""
  if is_workdir(path) or not (path / adapter.CONFIG).is_file():
    return None
  name = adapter.read_config(path)[1]["base_model_name_or_path"]
  base = path / name if (path / name).is_dir() else find(name, f"{path / adapter.CONFIG}: base_model_name_or_path")
  if base.resolve() == path.resolve():
    raise ConfigError(f"{path / adapter.CONFIG}: base_model_name_or_path={name!r} is the adapter itself")
  return base


def read_architecture(path: Path) -> TransformerConfig:
  """What the model is, every field resolved."""
  if base := find_adapted(path):
    return read_architecture(base)
  return record.read_architecture(path) if is_workdir(path) else settings.read(path)[1]


def scan(path: Path) -> weights.Checkpoint:
  """What there is, as tensors of a Hugging Face directory, whatever it is; of a workdir they are read when they are needed.

  Raises:
    ConfigError: as `weights.scan` and `adapter.read`, or a workdir whose model is no architecture of transformers.
  """
  if base := find_adapted(path):
    return adapter.read(path, check_merged(scan(base))).checkpoint
  if not is_workdir(path):
    return weights.scan(path)
  model = read_model(path)
  family, load = settings.nearest(model.cfg), functools.cache(lambda: load_params(path)[1])
  found = weights.stored(model, lambda name: load()[name], family)
  values = settings.write(family, model.cfg) | {"architectures": [family.classes[kind] for kind in weights.head_kinds(model)]}
  return weights.assemble(path, family, model.cfg, values, found)


def read_model(path: Path, which: str | int = "last") -> Model:
  """Of a workdir, with the heads that were trained; it computes in fp32."""
  heads = {head for task in load_tasks(path, which).values() for head in task.heads}
  return Model(record.read_architecture(path), tuple(sorted(heads)))


def read_method(path: Path) -> Peft:
  """The PEFT method of a workdir, with what it took of the tokenizer."""
  method: Peft = plug.make("peft", record.load_config(path).peft)
  tok = find_tokenizer(path)
  return method.read_with(tok.encode) if tok else method


def read_quantizer(path: Path) -> Quantizer | None:
  """What kept the frozen kernels of a workdir's run in fewer bits."""
  value = record.load_config(path).quantizer
  return plug.make("quantizer", value) if value else None


def load_params(path: Path, which: str | int = "last", mesh: jax.sharding.Mesh | None = None) -> tuple[int, dict[str, Any]]:
  """Step and full plain parameters (PEFT leaves merged) by name: host arrays of a workdir's checkpoint, else on the mesh.

  which: "last", "best" or a step, of a workdir. What a PEFT run did not save is that of the base at the step where the run
  started from it; its base is looked for by `record.find_base`. The step of a Hugging Face directory is 0.

  Raises:
    ConfigError: a PEFT method whose leaves cannot be merged.
  """
  if not is_workdir(path):
    return 0, _load_scanned(check_merged(scan(path)), mesh)
  step, flat = load_unmerged(path, which)
  merged = plug.make("peft", record.load_config(path).peft).merge(tree.unflatten(flat))
  return step, {name: np.asarray(value) for name, value in tree.flatten(merged).items()}


def load_unmerged(path: Path, which: str | int = "last") -> tuple[int, dict[str, Any]]:
  """Step and all parameters of a workdir by name, the PEFT method's leaves beside those that they change."""
  step, below, own = load_parts(path, which)
  return step, below | own


def load_parts(path: Path, which: str | int = "last") -> tuple[int, dict[str, Any], dict[str, Any]]:
  """Step of a workdir; the parameters of its run's base by name, {} without one; those that the run has otherwise, or added.

  What a run compared itself with, and kept because it has no base, is left out; kernels that were quantised are as they were
  then, rounded.
  """
  cfg, quantizer = record.load_config(path), read_quantizer(path)
  step, kept = checkpoint.load_params(path / "checkpoints", which)
  own = {name: leaf for name, leaf in tree.flatten(kept).items() if not name.startswith(f"{REFERENCE}/")}
  base_path = None if cfg.peft == Plug("full") else record.find_base(path)
  unpacked = lambda flat: {name: np.asarray(leaf) for name, leaf in quantizer.unpacked(flat).items()} if quantizer else flat
  if base_path is None:
    return step, {}, unpacked(own)
  base = record.read_manifest(path)["base"]
  _, below = load_params(base_path, base["step"])
  if base["sha256"] and tree.sha256(tree.unflatten(below)) != base["sha256"]:
    raise ConfigError(f"config.init_from={cfg.init_from!r} of {path}: its parameters changed since that run started")
  attached = _attached(path, read_model(path, which), below, quantizer)
  changed = {name: leaf for name, leaf in attached.items() if leaf is not below.get(name)}
  return step, below, unpacked(changed | own)


def _attached(path: Path, model: Model, base: Mapping[str, Any], quantizer: Quantizer | None) -> dict[str, Any]:
  """What a run's method and quantizer make of the parameters of its base; leaves that are added have values to be replaced.

  Heads that the base lacks are shown to it, since it may say which of them train, and left out.
  """
  own = tree.flatten(model.abstract)
  value = lambda name, box: base[name] if name in base else np.zeros(box.value.shape, box.value.dtype)
  boxes = {name: box.replace(value=value(name, box)) for name, box in own.items()}
  boxes = quantizer.rounded(boxes) if quantizer else boxes
  attached = tree.flatten(read_method(path).attach(tree.unflatten(boxes), jax.random.key(0)))
  return {name: np.asarray(box.value) for name, box in attached.items() if name in base or name not in own}


def load_model(path: Path, which: str | int = "last", mesh: jax.sharding.Mesh | None = None) -> tuple[Model, dict[str, Any]]:
  """Model (with the heads that were trained) and parameter tree, for inference; arguments as `load_params` takes them.

  What a PEFT method added is merged where it can be, and else beside it: the method is the model's tuner then.
  """
  if is_workdir(path):
    cfg, model = record.load_config(path), read_model(path, which)
    method = read_method(path)
    model = model if method.merges else dataclasses.replace(model, tuner=method)
    _, flat = load_params(path, which) if method.merges else load_unmerged(path, which)
    dtype = cfg.dtype
  else:
    found = scan(path)
    model, flat, dtype = found.model, _load_scanned(found, mesh), "auto"
  own = tree.flatten(model.abstract)
  compute = device.compute_dtype(dtype, jax.devices()[0])
  kept = {name: value for name, value in flat.items() if name in own}  # a base may have other heads
  return dataclasses.replace(model, dtype=compute), tree.unflatten(kept)


def check_merged(found: weights.Checkpoint) -> weights.Checkpoint:
  """What was scanned, if there is no method around it; raises ConfigError as the method's `merge`."""
  if found.model.tuner:
    found.model.tuner.merge({})
  return found


def _load_scanned(found: weights.Checkpoint, mesh: jax.sharding.Mesh | None) -> dict[str, Any]:
  return weights.load(found, sharding.by_name(found.model.abstract, mesh) if mesh else None)


def find_tokenizer(path: Path) -> Tokenizer | None:
  """The copy in a workdir, so that it stays whole when the original moves; that of the other folders. None without.

  An adapter's folder may have one, else it is the base's.

  Raises:
    ConfigError: files that are no tokenizer, or one with ids for which the embedding table has no row.
  """
  if is_workdir(path):
    kept = record.read_manifest(path)["tokenizer"]
    where = tokenizers.saved_path(path, kept) if kept else ""
  else:
    where = str(path) if any((path / name).is_file() for name in TOKENIZER_FILES) else ""
  if not where:
    base = find_adapted(path)
    return find_tokenizer(base) if base else None
  with files.fetched(where) as copy:
    tok = tokenizers.load(copy)
  num_rows = read_architecture(path).vocab_size
  if tok.vocab_size > num_rows:
    raise ConfigError(f"{path}: its tokenizer has {tok.vocab_size} pieces, its embedding table {num_rows} rows")
  return tok


def load_tokenizer(path: Path) -> Tokenizer:
  """The same.

  Raises:
    ConfigError: there is none.
  """
  tok = find_tokenizer(path)
  if tok is None:
    raise ConfigError(f"{path}: has no tokenizer files ({', '.join(TOKENIZER_FILES)})")
  return tok


def token_ids(path: Path) -> dict[str, Any]:
  """What a config.json says of special tokens, {"pad_token_id": 0, ...}.

  It is that of a Hugging Face directory, or of the one that a workdir was imported from; else what the tokenizer says.
  """
  if base := find_adapted(path):
    return token_ids(base)
  found = record.read_manifest(path).get("token_ids", {}) if is_workdir(path) else read_json(path / "config.json")
  theirs = {name: value for name, value in found.items() if name.endswith("_token_id")}
  tok = None if theirs else find_tokenizer(path)
  ours = {f"{name}_token_id": getattr(tok, f"{name}_id", None) for name in ("pad", "bos", "eos", "cls", "sep")}
  return theirs or {name: i for name, i in ours.items() if i is not None and i >= 0}


def load_tasks(path: Path, which: str | int = "last") -> dict[str, Task]:
  """Tasks by stream, as a checkpoint keeps them: with what the run took from its data (a label set).

  A Hugging Face directory and an adapter have the tasks of their heads; one of sentence-transformers has `embed`.
  """
  if is_workdir(path):
    folder = path / "checkpoints"
    kept = checkpoint.read_progress(folder / str(checkpoint.choose(folder, which)))["tasks"]
    return {key: plug.make("task", parse_plug(f"{path}: task", value)) for key, value in kept.items()}
  found = scan(path)
  labels, pooling = weights.labels(found), ("pooling", settings.read_pooling(found.family, found.settings))
  name = "multilabel" if found.settings.get("problem_type") == weights.LABEL_PROBLEMS[1] else "classify"
  reads = Plug(name, (pooling, ("labels", labels))) if labels else Plug("regress", (pooling,))
  kinds = weights.head_kinds(found.model)
  if weights.chooses(found):  # between how many, and what they are called, stands nowhere
    kinds = [kind for kind in kinds if kind != "classifier"]
  make = lambda plugin: (plugin.name, plug.make("task", plugin))
  of_kind = {kind: make(plugin) for kind, plugin in TASKS.items()}
  of_kind |= {"classifier": make(reads), "tagger": ("tag", Tag.of_outputs(weights.tags(found)))}
  tasks = [of_kind[kind] for kind in kinds]
  if embeds := sentence.read(path):
    tasks.append(make(Plug("embed", tuple(embeds.items()))))
  return {name: task.fitted(found.model.cfg.max_len) for name, task in tasks}
