"""Any checkpoint as a value: a Hugging Face directory or id, an adapter, or the workdir of a run; and the way back."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import record, saved, tree
from lm.config import ConfigError
from lm.data import reserve
from lm.data.hf_tokenizer_export import to_huggingface
from lm.data.tokenizer import Tokenizer
from lm.files import write_json
from lm.interop import adapter, sentence, settings, weights
from lm.interop.adapters.format import Trained
from lm.models.family import Family
from lm.models.head_spec import HeadSpec
from lm.models.heads import ROW_HEADS
from lm.models.model import Model
from lm.tasks.choose import Choose
from lm.tasks.classify import Classify
from lm.tasks.embed import Encoder
from lm.tasks.forward import pool
from lm.tasks.multilabel import Multilabel
from lm.tasks.tag import Tag
from lm.tasks.task import Task
from lm.tasks.text_rows import TextRows


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
  """A model with its parameters, tokenizer and the tasks of its heads.

  token_ids: what a config.json says of special tokens, {"pad_token_id": 0, ...}.
  """

  model: Model
  params: dict[str, Any]
  tokenizer: Tokenizer | None = None
  tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)
  token_ids: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def labels(self) -> tuple[str, ...]:
    """Of the head that an export keeps, in the order of its outputs; () where these have no names."""
    tags = [task.classes for task in self.tasks.values() if isinstance(task, Tag)]
    labels = [task.labels for task in self.tasks.values() if isinstance(task, Classify | Multilabel)]
    return next(iter({"tagger": tags, "classifier": labels}.get(self.kind, ())), ())

  @property
  def pooling(self) -> str:
    """What the classifier reads of the hidden states, "" as the model does."""
    return next((task.pooling for task in self.tasks.values() if isinstance(task, TextRows | Choose)), "")

  @property
  def kind(self) -> str:
    """The kind of the head that an export keeps, "" if there is no more than a pooler."""
    return next(iter(weights.head_kinds(self.model)), "")

  @property
  def exported(self) -> Model:
    """The model with the head that an export keeps."""
    kind = self.kind or "classifier"  # a pooler
    return dataclasses.replace(self.model, heads=tuple(head for head in self.model.heads if head[1].kind == kind))

  def describe(self, family: Family) -> dict[str, Any]:
    """The config.json of an export; errors as `settings.write_pooling` and `weights.check_heads`."""
    weights.check_heads(family, self.exported)
    cfg, kind = self.model.cfg, self.kind
    described = settings.write(family, cfg) | {"architectures": [family.classes[kind]], **self.token_ids}
    for name in family.only.keys() & self.token_ids.keys():
      if self.token_ids[name] not in family.only[name]:
        raise ConfigError(
          f"{name}={self.token_ids[name]}: another model in {family.model_type}, which takes {family.only[name][0]};"
          " it needs a tokenizer of its own, or the family bert"
        )
    if kind == "chooser":
      return described | settings.write_pooling(family, cfg.causal, self.pooling)
    if kind not in weights.LABELLED:
      return described
    names = dict(enumerate(self.labels or ("LABEL_0",)))
    described |= {"id2label": {str(i): name for i, name in names.items()}, "label2id": {name: i for i, name in names.items()}}
    if kind != "classifier":
      return described
    several = any(isinstance(task, Multilabel) for task in self.tasks.values())
    problem = "multi_label_classification" if several else "" if self.labels else "regression"
    described |= {"problem_type": problem} if problem else {}
    return described | settings.write_pooling(family, cfg.causal, self.pooling)

  def run(self, tokens, segment_ids=None, positions=None, attention_mask=None) -> dict[str, np.ndarray]:
    """What the model says of arrays [B, T]: hidden_states [L + 1, B, T, D] and, where it has them, logits and pooled [B, D].

    What a method trained in front of the text is there too, and what the model says of it is left out.
    hidden_states are in transformers' order: the embedding's output, each block's, the last one after the final norm.
    logits: [B, T, V] of a vocabulary's head, [B, T, N] of a tagger, [B, T, 2] (start, end) of spans, [B, N] of a classifier.

    Args:
      segment_ids: equal in tokens that see each other, 0 on padding; all 1 if not given.
      positions: counted in each segment if not given.
      attention_mask: 1 on tokens, 0 on padding, instead of segment_ids.

    Raises:
      ConfigError: arrays of another shape or type, or numbers that the model has no row for.
    """
    inputs = _inputs(self.model, np.asarray(tokens), segment_ids, positions, attention_mask)
    num_virtual = self.model.num_virtual_tokens
    from_BT = reserve.columns(inputs["segment_ids"], num_virtual) if num_virtual else None
    found = _run(self.model, self.pooling, self.params, _with_virtual(inputs, num_virtual) if num_virtual else inputs)
    return {name: _at(np.asarray(value), name, from_BT) for name, value in found.items()}


def load_pretrained(path: str | Path, checkpoint: str | int = "last") -> Pretrained:
  """The checkpoint of a Hugging Face directory or id, of an adapter beside its base, or of a workdir; it computes in fp32.

  checkpoint: of a workdir: "last", "best" or the number of a step.

  Raises:
    ConfigError: none of them, or files that do not fit each other; it lists what is wrong.
  """
  folder = saved.find(str(path), "path")
  model, params = saved.load_model(folder, checkpoint)
  return Pretrained(
    model=dataclasses.replace(model, dtype="float32"),
    params=params,
    tokenizer=saved.find_tokenizer(folder),
    tasks=saved.load_tasks(folder, checkpoint),
    token_ids=saved.token_ids(folder),
  )


def save_pretrained(pretrained: Pretrained, directory: str | Path, dtype: str = "float32") -> dict[str, Any]:
  """Writes what transformers loads: config.json, safetensors, and tokenizer files where there is a tokenizer.

  Of several heads only that of `pretrained.kind` is written. Returns what stands in config.json. dtype: of the tensors:
  float32, bfloat16 or float16.

  Raises:
    ConfigError: a model that no architecture of transformers is; it says in what the nearest differs. One with a tuner.
  """
  model = pretrained.model
  params = model.tuner.merge(pretrained.params) if model.tuner else pretrained.params
  folder, cfg, kind = Path(directory), pretrained.model.cfg, pretrained.kind
  family = settings.nearest(cfg)
  written = pretrained.describe(family) | {"dtype": dtype}
  if cfg.causal and kind == "classifier" and written.get("pad_token_id", -1) == getattr(pretrained.tokenizer, "sep_id", None):
    del written["pad_token_id"]  # transformers reads the last token that is none, and the last one here is sep
  embeds = next((task for task in pretrained.tasks.values() if isinstance(task, Encoder) and not kind), None)
  if pretrained.tokenizer is not None:  # the one that may be refused comes first, so that nothing is left behind
    # A decoder that classifies or embeds reads [cls a sep], as the task writes it.
    generates = cfg.causal and kind != "classifier" and embeds is None
    to_huggingface(pretrained.tokenizer, folder, cfg.max_len, generates, cfg.token_types > 1)
  folder.mkdir(parents=True, exist_ok=True)
  weights.save(pretrained.exported, tree.flatten(params), family, folder, dtype)
  write_json(folder / "config.json", written)
  if embeds is not None:
    sentence.write(folder, embeds.read_from(cfg.causal), embeds.normalize, cfg.model_dim, cfg.max_len)
  if kind == "lm":
    ids = {name: value for name, value in pretrained.token_ids.items() if name.split("_")[0] in ("bos", "eos", "pad")}
    write_json(folder / "generation_config.json", ids)
  return written


def save_adapter(workdir: Path, directory: Path, which: str | int = "last") -> Pretrained:
  """Writes what a run trained as peft loads it onto the run's base; returns the run's model, the method's leaves beside.

  Beside peft's files, a head with labels has its config.json as head.json, for transformers to load the base with.

  Raises:
    ConfigError: a run without a base, or of a method that peft does not have, or as `adapter.write`.
  """
  cfg, manifest = record.load_config(workdir), record.read_manifest(workdir)
  if cfg.peft.name not in adapter.formats() or not cfg.init_from:
    raise ConfigError(
      f"--adapter: {workdir} trained peft={cfg.peft.name!r} from init_from={cfg.init_from!r}; accepted are runs of"
      f" {', '.join(sorted(adapter.formats()))} that started from a base, export others without --adapter"
    )
  method = saved.read_method(workdir).resolve(manifest["total_steps"])
  if getattr(method, "init", "") == "pissa":
    raise ConfigError(
      f"--adapter: {workdir} trained peft.init='pissa', whose product belongs to what remained of the base; export it without"
      " --adapter"
    )
  _, flat = saved.load_unmerged(workdir, which)
  found = Pretrained(
    dataclasses.replace(saved.read_model(workdir, which), tuner=method),
    tree.unflatten(flat),
    tasks=saved.load_tasks(workdir, which),
    token_ids=saved.token_ids(workdir),
  )
  write_adapter(found, directory, cfg.init_from, manifest["base"]["sha256"] or "", manifest["total_steps"])
  return found


def write_adapter(found: Pretrained, directory: Path, base: str, base_sha256: str, total_steps: int = 0) -> None:
  """Writes what the model's tuner has trained, and its head, as peft loads it.

  Args:
    base: what it was trained on: a folder or an id of the hub. base_sha256: of its parameters. total_steps: of the run.
  """
  described = found.describe(settings.nearest(found.model.cfg))
  folder = Path(base).expanduser()
  model = dataclasses.replace(found.exported, tuner=None)
  trained = Trained(model, tree.flatten(found.params), found.model.tuner, total_steps)
  adapter.write(directory, trained, str(folder.resolve()) if folder.is_dir() else base, base_sha256)
  if found.kind in weights.LABELLED:
    write_json(directory / adapter.HEAD, described)


def _with_virtual(inputs: dict[str, np.ndarray], num: int) -> dict[str, np.ndarray]:
  """The inputs with room for, and positions of, what is in front of every segment."""
  room = int(reserve.columns(inputs["segment_ids"], num)[:, -1].max()) + 1 - inputs["tokens"].shape[1]
  widened = {name: np.pad(array, ((0, 0), (0, room))) for name, array in inputs.items() if name != "row"}
  return reserve.reserve(widened, num) | {"row": inputs["row"]}


def _at(value: np.ndarray, name: str, from_BT: np.ndarray | None) -> np.ndarray:
  """What an output says of the columns given; all of one that has none."""
  if from_BT is None or name == "pooled" or value.ndim < 3:
    return value
  index = from_BT[..., None] if name == "logits" else from_BT[None, ..., None]
  return np.take_along_axis(value, index, axis=-2)


def _inputs(model: Model, tokens_BT, segment_ids, positions, attention_mask) -> dict[str, np.ndarray]:
  cfg = model.cfg
  if tokens_BT.ndim != 2 or not tokens_BT.size:
    raise ConfigError(f"tokens: expected [B, T], got the shape {list(tokens_BT.shape)}")
  if segment_ids is not None and attention_mask is not None:
    raise ConfigError("segment_ids and attention_mask: give one of them")
  given = attention_mask if segment_ids is None else segment_ids
  segment_ids_BT = np.ones_like(tokens_BT) if given is None else np.asarray(given)
  of_mask = attention_mask is not None
  _check("tokens", tokens_BT, tokens_BT.shape, cfg.vocab_size)
  _check("attention_mask" if of_mask else "segment_ids", segment_ids_BT, tokens_BT.shape, 2 if of_mask else None)
  if positions is None:
    starts_BT = np.concatenate([np.ones_like(segment_ids_BT[:, :1]), np.diff(segment_ids_BT, axis=1) != 0], axis=1)
    slots_BT = np.broadcast_to(np.arange(tokens_BT.shape[1]), tokens_BT.shape)
    positions = slots_BT - np.maximum.accumulate(np.where(starts_BT, slots_BT, 0), axis=1)
  arrays = {"tokens": tokens_BT, "segment_ids": segment_ids_BT, "positions": np.asarray(positions)}
  limit = model.max_len - model.num_virtual_tokens if cfg.positions == "learned" else None
  _check("positions", arrays["positions"], tokens_BT.shape, limit)
  rows = {"row": np.arange(len(tokens_BT))}
  return {name: np.asarray(array, np.int32) for name, array in (arrays | rows).items()}


def _check(name: str, array: np.ndarray, shape: tuple[int, ...], limit: int | None) -> None:
  """Raises ConfigError unless it has that shape and numbers 0 <= n < limit: a table's lookup takes its last row for others."""
  if array.shape != shape:
    raise ConfigError(f"{name}: expected the shape of tokens {list(shape)}, got {list(array.shape)}")
  if array.dtype.kind not in "iub":
    raise ConfigError(f"{name}: expected integers, got {array.dtype}")
  top = np.iinfo(np.int32).max + 1 if limit is None else limit
  bad = array[(array < 0) | (array >= top)]
  if bad.size:
    raise ConfigError(f"{name}: has {bad[0]}, accepted are 0 to {top - 1}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(model: Model, pooling: str, params: dict, inputs: dict[str, Any]) -> dict[str, jax.Array]:
  states_LBTD = model.hidden_states(params, inputs)
  h_BTD, row_B = states_LBTD[-1], inputs["row"]
  found = {"hidden_states": states_LBTD}
  for name, spec in ((name, spec) for name, spec in model.heads if spec.kind in weights.HEADS):
    if spec.kind not in (*ROW_HEADS, "chooser"):
      found["logits"] = model.logits(params, name, h_BTD, row_B)
      continue
    if spec.num_outputs:
      read_BD = pool(h_BTD, inputs, pooling or ("last" if model.cfg.causal else "first"))
      read = read_BD[:, None] if spec.kind == "chooser" else read_BD  # a row is a choice
      found["logits"] = model.logits(params, name, read, row_B)
    if model.cfg.pooler == "tanh":
      alone = dataclasses.replace(model, heads=((name, HeadSpec("classifier", 0)),))
      found["pooled"] = alone.logits(params, name, pool(h_BTD, inputs, "first"), row_B)
  return found
