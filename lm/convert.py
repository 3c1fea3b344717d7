"""Between Hugging Face directories and workdirs: import, export, merge, and what either computes (`tools.convert`)."""

import dataclasses
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lm import adapters, config, hub, record, saved, tree
from lm.checkpoint import Checkpoints
from lm.config import ConfigError
from lm.files import read_json
from lm.interop import adapter, sentence, weights
from lm.interop.card import make_adapter_card, make_card
from lm.pretrained import load_pretrained, save_adapter, save_pretrained
from lm.state import TrainState

ARRAYS = ("tokens", "segment_ids", "positions", "attention_mask")
WRITE_BYTES = 2**27  # of an import, at once


def import_checkpoint(source: str, out: Path) -> str:
  """Writes a Hugging Face directory or id as a workdir, whose checkpoint restores onto any mesh; returns a line about it.

  Tensors are read one by one onto the devices and written from there, each split over them in layers or rows, which are
  written a few at a time: the host holds the parameters once, and one part.

  Raises:
    ConfigError: a source that cannot be read, or an `out` that holds something.
  """
  folder = saved.find(source, "--from")
  if saved.is_workdir(folder):
    raise ConfigError(f"--from={source}: is the workdir of a run already; give it as config.init_from")
  _check_empty(out)
  architecture, tok, tasks = saved.read_architecture(folder), saved.find_tokenizer(folder), saved.load_tasks(folder)
  found = saved.check_merged(saved.scan(folder))
  flat = weights.load(found, {leaf.name: _parts(leaf.shape) for leaf in found.leaves})
  task = next(iter(tasks), "causal" if architecture.causal else "mlm")
  cfg = config.from_dict({"task": task, "data": "memory", "seq_len": sentence.read_max_len(folder) or architecture.max_len})
  described = {name: {"name": name, **dataclasses.asdict(value)} for name, value in tasks.items()}
  record.write_imported(
    out, cfg, architecture, tok, {"source": source, "token_ids": saved.token_ids(folder), "tasks": described}
  )
  state = TrainState(jnp.zeros((), jnp.int32), tree.unflatten(flat), {}, {}, {}, {})
  largest = max(math.prod(value.sharding.shard_shape(value.shape)) * value.dtype.itemsize for value in flat.values())
  with Checkpoints(out / "checkpoints", in_flight=max(WRITE_BYTES, largest + 1)) as checkpoints:
    checkpoints.save(0, state, with_frozen=False, progress={"tasks": described})
  left_out = f"; left out: {weights.some(found.left_out)}" if found.left_out else ""
  return f"{out}: {tree.count(flat):,} parameters of {source}; heads: {', '.join(tasks) or 'none'}{left_out}"


def export_checkpoint(source: str, out: Path, which: str = "last", dtype: str = "float32") -> str:
  """Writes any checkpoint as a Hugging Face directory with tokenizer and model card; returns a line about it.

  Raises:
    ConfigError: as `load_pretrained` and `save_pretrained`, or an `out` that holds something.
  """
  _check_empty(out)
  pretrained = load_pretrained(source, which)
  written = save_pretrained(pretrained, out, dtype)
  folder = saved.find(source, "--from")
  run = _run(folder) if saved.is_workdir(folder) else {}
  num_params = tree.count(pretrained.params)
  (out / "README.md").write_text(make_card(out.name, pretrained.kind, written, num_params, run))
  others = [name for name, spec in pretrained.model.heads if spec.kind != pretrained.kind]
  left_out = f"; left out: head {', '.join(others)}" if others else ""
  return f"{out}: {written['architectures'][0]}, {num_params:,} parameters{left_out}"


def export_adapter(source: str, out: Path, which: str = "last") -> str:
  """Writes what a run trained beside its base as a directory of the peft library; returns a line about it.

  Raises:
    ConfigError: a source that is no workdir of such a run, or an `out` that holds something.
  """
  _check_empty(out)
  folder = saved.find(source, "--from")
  if not saved.is_workdir(folder):
    raise ConfigError(f"--adapter: --from={source} is not the workdir of a run")
  found, run = save_adapter(folder, out, which), _run(folder)
  base, method = read_json(out / adapter.CONFIG)["base_model_name_or_path"], run["config"]["peft"]["name"]
  num_params = run["manifest"]["params"]["trainable"]
  (out / "README.md").write_text(make_adapter_card(out.name, method, found.kind, base, run))
  needs = "; export the base too, for transformers" if saved.is_workdir(Path(base)) else ""
  return f"{out}: {method} adapter of {base}, {num_params:,} parameters{needs}"


def merge_adapters(sources: Sequence[str], out: Path, how: str = "linear", rank: int = 0) -> str:
  """Writes the weighted sum of LoRA adapters of one base as a directory of peft; returns a line about it.

  sources: "PATH:WEIGHT", of runs or of directories of peft. how, rank: as `lm.adapters.merge` takes them.

  Raises:
    ConfigError: text that is none of these, adapters of several bases, or as `lm.adapters.merge`.
  """
  _check_empty(out)
  shares = dict(map(_share, sources))
  if len(shares) < len(sources):
    raise ConfigError(f"merge: {', '.join(sources)}: has an adapter twice")
  first = saved.find(next(iter(shares)), "merge")
  folder = record.find_base(first) if saved.is_workdir(first) else saved.find_adapted(first)
  if folder is None:
    raise ConfigError(f"merge: {first} is no adapter; accepted are runs that started from a base, and directories of peft")
  model, params = saved.load_model(folder)
  base = adapters.Base(folder, str(folder), model, tree.flatten(params))
  merged = adapters.merge({source: adapters.load(source, base) for source in shares}, shares, base, how, rank)
  adapters.save(merged, base, out)
  return f"{out}: lora adapter of {folder}, rank {getattr(merged.method, 'rank', 0)}, of {' '.join(sources)} by {how}"


def _share(text: str) -> tuple[str, float]:
  """("PATH", 0.7) of "PATH:0.7"."""
  path, _, weight = text.rpartition(":")
  try:
    return path, float(weight)
  except ValueError as error:
    raise ConfigError(f"merge: {text!r}: expected PATH:WEIGHT") from error


def push(folder: Path, repository: str) -> str:
  """Uploads an exported directory to the hub as user/name; returns its address."""
  from huggingface_hub import HfApi

  api, words = HfApi(), f"--push={repository}"
  hub.ask(words, lambda: api.create_repo(repository, exist_ok=True))
  return str(hub.ask(words, lambda: api.upload_folder(repo_id=repository, folder_path=folder)))


def check(source: str, arrays: Path, out: Path) -> str:
  """Runs a checkpoint of either format on the arrays of an npz file and writes what it computes as another.

  arrays: tokens [B, T], and optionally segment_ids, positions or attention_mask. out: hidden_states [L + 1, B, T, D], and
  logits and pooled where the model has them, as `Pretrained.run` gives them.
  """
  if not out.absolute().parent.is_dir() or out.is_dir():
    raise ConfigError(f"--output={out}: not a file in a folder that exists")
  try:
    with zipfile.ZipFile(arrays), np.load(arrays) as found:
      given = {name: found[name] for name in found.files}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise ConfigError(f"--input={arrays}: not an npz file ({error})") from error
  unknown = set(given) - set(ARRAYS)
  if "tokens" not in given or unknown:
    raise ConfigError(f"--input={arrays}: has {', '.join(given) or 'nothing'}; accepted are tokens and {', '.join(ARRAYS[1:])}")
  found = load_pretrained(source).run(**given)
  with out.open("wb") as stream:
    np.savez(stream, allow_pickle=False, **found)
  return f"{out}: " + ", ".join(f"{name} {list(array.shape)}" for name, array in found.items())


def _parts(shape: tuple[int, ...]) -> jax.sharding.Sharding:
  """Over as many devices as the first dim can be split over."""
  devices = jax.devices()
  num_parts = max(n for n in range(1, len(devices) + 1) if shape[0] % n == 0)
  mesh = jax.make_mesh((num_parts,), ("part",), axis_types=(AxisType.Auto,), devices=devices[:num_parts])
  return NamedSharding(mesh, PartitionSpec("part"))


def _run(workdir: Path) -> dict[str, Any]:
  """What a model card tells of a run."""
  return {
    "manifest": record.read_manifest(workdir),
    "summary": record.read_summary(workdir),
    "config": read_json(workdir / "config.json"),
  }


def _check_empty(out: Path) -> None:
  if out.exists() and not out.is_dir():
    raise ConfigError(f"--to={out}: not a folder")
  if out.exists() and any(out.iterdir()):
    raise ConfigError(f"--to={out}: holds something already; nothing is overwritten")
