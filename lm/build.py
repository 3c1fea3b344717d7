"""The only composition root: a config becomes a run. Every bad value is one clear line before a device computes anything."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lm import config, device, duration, plug, record, saved, sharding, tree
from lm.config import Config, ConfigError, Plug, Stream
from lm.data import paths, stand_in, store
from lm.data import source as sources
from lm.data import tokenizer as tokenizers
from lm.data.loader import Loader, StreamData
from lm.data.parts import Hosts
from lm.data.tokenizer import Tokenizer
from lm.models import kernel
from lm.models.model import Model
from lm.models.transformer_config import TRAINING_FIELDS, TransformerConfig
from lm.optim.optimizer import Optimizer
from lm.peft.peft import Peft
from lm.program import Spec, make_program
from lm.quantizers.quantizer import Quantizer
from lm.regularizers.regularizer import Regularizer
from lm.run import Base, Outline, Run
from lm.tasks.classify import Classify
from lm.tasks.cross_entropy import Softening
from lm.tasks.objective import Objective
from lm.tasks.task import Task


def make_run(cfg: Config, devices: list[jax.Device] | None = None) -> Run:
  """Assembles tokenizer, tasks, data, model, PEFT method, optimizer, mesh and base.

  Args:
    devices: those of the mesh; all of the process's if not given.

  Raises:
    ValueError: a setting, its value, and what is accepted.
  """
  base = saved.find(cfg.init_from, "config.init_from") if cfg.init_from else None
  tok = _make_tokenizer(cfg, base)
  return _assemble(cfg, tok, _make_architecture(cfg, base, tok), base, devices)


def load_run(workdir: Path, devices: list[jax.Device] | None = None) -> Run:
  """The run of a workdir with the tokenizer and the architecture that are kept there, to evaluate what it trained.

  A run of full parameters needs no base any more and has none, so one that was fine-tuned is trained on by `make_run`; but
  the base is needed, and is there, where a task compares with it.
  devices: as `make_run` takes them.
  """
  cfg = record.load_config(workdir)
  tok = saved.load_tokenizer(workdir)
  compares = any(plug.make("task", stream.task).needs_reference for stream in cfg.all_streams.values())
  base = None if cfg.peft == Plug("full") and not compares else record.find_base(workdir)
  return _assemble(cfg, tok, record.read_architecture(workdir), base, devices)


def make_encoder(cfg: Config) -> tuple[Tokenizer, dict[str, Task], Any]:
  """What the stores of a run are made with: tokenizer, tasks by stream, and the source as a function of (stream, split).

  Raises:
    ValueError: as `make_run`.
  """
  base = saved.find(cfg.init_from, "config.init_from") if cfg.init_from else None
  tok = _make_tokenizer(cfg, base)
  source = functools.cache(functools.partial(sources.make, cfg))
  return tok, _make_tasks(cfg, _make_architecture(cfg, base, tok), tok, source), source


def make_outline(cfg: Config, devices: list[jax.Device] | None = None) -> Outline:
  """What compiles the train step of a run, also for devices that are not there. No data is read and nothing is fetched.

  A tokenizer or a base that is not on this machine is left out: `config.model` then has to say the sizes.

  Raises:
    ValueError: as `make_run`.
  """
  notes = []
  base = saved.find(cfg.init_from, "config.init_from") if cfg.init_from and Path(cfg.init_from).is_dir() else None
  if cfg.init_from and base is None:
    notes.append(f"config.init_from={cfg.init_from!r} is not here: the shapes are those of config.model")
  if base or cfg.tokenizer == "bytes" or Path(cfg.tokenizer or " ").exists():
    tok = _make_tokenizer(cfg, base)
  else:
    tok = _stand_in_tokenizer(cfg)
    notes.append(f"config.tokenizer={cfg.tokenizer!r} is not here: config.model says {tok.vocab_size:,} pieces")
  architecture = _make_architecture(cfg, base, tok)
  parts = _make_parts(cfg, architecture, tok, devices)
  tasks = _make_tasks(cfg, architecture, tok, lambda name, _: stand_in.StandInSource.of(cfg.all_streams[name]))
  keys, stages = _task_keys(tasks), config.weight_stages(cfg)
  made = {name: stand_in.store(task, cfg.seq_len) for name, task in tasks.items()}
  num_virtual = parts.peft.num_virtual_tokens
  streams = (StreamData(name, keys[name], tasks[name], made[name], tok, stages[name], num_virtual) for name in tasks)
  loader, total_steps = _make_loader(cfg, tuple(streams))
  counted = "epoch" not in str(cfg.total_steps)
  if not counted:
    notes.append(f"config.total_steps={cfg.total_steps!r}: how many steps an epoch has is not known without the data")
  program = make_program(_make_spec(cfg, architecture, tasks, parts, total_steps))
  return Outline(cfg, program, tuple(loader.shapes()), total_steps if counted else None, tuple(notes))


def _stand_in_tokenizer(cfg: Config) -> Tokenizer:
  preset = plug.make("model", cfg.model) if cfg.model else None
  if preset is None or not preset.vocab_size:
    needed = f"config.model{'.vocab_size' if preset else ''}"
    raise ConfigError(f"{needed}: not set, and neither config.tokenizer={cfg.tokenizer!r} nor a base is here to give it")
  return stand_in.StandInTokenizer(preset.vocab_size)


def cache_dir(cfg: Config) -> str:
  """Folder or URL of the stores."""
  return cfg.cache_dir or str(paths.cache_folder())


def _assemble(
  cfg: Config, tok: Tokenizer, architecture: TransformerConfig, base: Path | None, devices: list[jax.Device] | None
) -> Run:
  """The run of a config over what it starts from. base: workdir of the parameters, None for random ones."""
  parts = _make_parts(cfg, architecture, tok, devices)
  source = functools.cache(functools.partial(sources.make, cfg))
  tasks = _make_tasks(cfg, architecture, tok, source)
  keys, stages = _task_keys(tasks), config.weight_stages(cfg)
  hosts = Hosts(jax.process_index(), jax.process_count(), cfg.cache_deadline)

  @functools.cache
  def load(name: str, split: str) -> StreamData:
    built = store.build(source(name, split), tok, tasks[name], cache_dir(cfg), hosts=hosts)
    return StreamData(name, keys[name], tasks[name], built, tok, stages[name], parts.peft.num_virtual_tokens)

  loader, total_steps = _make_loader(cfg, tuple(load(name, "train") for name in tasks))
  spec = _make_spec(cfg, architecture, tasks, parts, total_steps)
  return Run(
    config=cfg,
    program=make_program(spec),
    tokenizer=tok,
    loader=loader,
    total_steps=total_steps,
    schedule=spec.optimizer.make_schedule(total_steps),
    load=load,
    source=source,
    base=_load_base(cfg, spec, base) if base else None,
  )


class _Parts(NamedTuple):
  """What a run is made of that needs no data, so that a slip in it is found before any is read."""

  peft: Peft
  quantizer: Quantizer | None
  optimizer: Optimizer
  regularizer: Regularizer | None
  mesh: jax.sharding.Mesh
  accumulation: int


def _make_parts(cfg: Config, architecture: TransformerConfig, tok: Tokenizer, devices: list[jax.Device] | None) -> _Parts:
  peft = plug.make("peft", cfg.peft).read_with(tok.encode)
  _check_length(cfg, architecture, peft.position_shift)
  quantizer = plug.make("quantizer", cfg.quantizer) if cfg.quantizer else None
  optimizer: Optimizer = plug.make("optimizer", cfg.optimizer)
  mesh = sharding.make_mesh(cfg.mesh, devices or jax.devices())
  _check_mesh(cfg, architecture, mesh)
  accumulation = _accumulation(cfg, mesh)
  regularizer = plug.make("regularizer", cfg.regularizer) if cfg.regularizer else None
  return _Parts(peft, quantizer, optimizer, regularizer, mesh, accumulation)


def _make_loader(cfg: Config, streams: tuple[StreamData, ...]) -> tuple[Loader, int]:
  """The loader, and the steps of the run, which may be a number of its epochs."""
  seed = cfg.seed if cfg.data_seed is None else cfg.data_seed
  loader = Loader(streams, batch_size=cfg.batch_size, seq_len=cfg.seq_len, buckets=cfg.length_buckets, seed=seed)
  units = {"batch_size": cfg.batch_size, "seq_len": cfg.seq_len, "examples_per_epoch": loader.rows_per_epoch}
  return loader, duration.steps(cfg.total_steps, "config.total_steps", **units)


def _make_spec(cfg: Config, architecture: TransformerConfig, tasks: dict[str, Task], parts: _Parts, total_steps: int) -> Spec:
  """Model and objective of the tasks, by stream, and what is not of them."""
  keys = _task_keys(tasks)
  by_key = {keys[name]: task for name, task in tasks.items()}
  heads = tuple(sorted(dict(head for task in by_key.values() for head in task.heads).items()))
  dtype = device.compute_dtype(cfg.dtype, parts.mesh.devices.flat[0])
  attention = kernel.choose(cfg.attention, parts.mesh.devices.flat[0])
  model = Model(architecture, heads, dtype, cfg.remat, cfg.scan_unroll, attention, quantizer=parts.quantizer)
  sharing = {key: tuple(name for name in keys if keys[name] == key) for key in by_key}
  several = tuple((key, names) for key, names in sharing.items() if len(names) > 1)
  softening = Softening(cfg.label_smoothing, cfg.z_loss)
  by_task, intercept = tuple(by_key.items()), parts.peft.intercept
  objective = Objective(model, by_task, intercept, cfg.loss_chunk, several, softening, parts.regularizer)
  if objective.needs_whole_batch and parts.accumulation > 1:
    name = next(key for key, task in by_key.items() if task.needs_whole_batch)
    raise ConfigError(
      f"config.tokens_per_device={cfg.tokens_per_device}: makes {parts.accumulation} micro-batches of a batch, all rows"
      f" of which the task of stream {name!r} compares; leave it unset; config.remat and config.batch_size save memory too"
    )
  return Spec(
    model=model,
    objective=objective,
    peft=parts.peft.resolve(total_steps),
    optimizer=parts.optimizer,
    total_steps=total_steps,
    accumulation=parts.accumulation,
    mesh=parts.mesh,
    sharding=cfg.sharding,
  )


def _make_tokenizer(cfg: Config, base: Path | None) -> Tokenizer:
  if base is None and not cfg.tokenizer:
    raise ConfigError("config.tokenizer: not set; accepted are a SentencePiece .model file, a Hugging Face folder or 'bytes'")
  inherited = saved.find_tokenizer(base) if base else None
  if inherited is None and not cfg.tokenizer:
    raise ConfigError(f"config.tokenizer: not set, and config.init_from={cfg.init_from!r} has none")
  if inherited is None:
    return tokenizers.load(cfg.tokenizer)
  if cfg.tokenizer and not inherited.same_as(tokenizers.load(cfg.tokenizer)):
    raise ConfigError(f"config.tokenizer={cfg.tokenizer!r}: not the one that {cfg.init_from} was trained with; leave it unset")
  return inherited


def _make_architecture(cfg: Config, base: Path | None, tok: Tokenizer) -> TransformerConfig:
  """The preset with the config's fields; unset, that of the base."""
  theirs = saved.read_architecture(base) if base else None
  if theirs and theirs.vocab_size < tok.vocab_size:
    raise ConfigError(
      f"config.tokenizer: has {tok.vocab_size} pieces, config.init_from={cfg.init_from!r} embeds {theirs.vocab_size}"
    )
  if cfg.model is None and theirs:
    return theirs
  if cfg.model is None:
    raise ConfigError(f"config.model: not set; accepted are {', '.join(plug.names('model'))}")
  architecture: TransformerConfig = plug.make("model", cfg.model)
  if not architecture.vocab_size:
    architecture = dataclasses.replace(architecture, vocab_size=tok.vocab_size)
  if architecture.vocab_size < tok.vocab_size:
    raise ConfigError(
      f"config.model.vocab_size={architecture.vocab_size}: the tokenizer {cfg.tokenizer!r} has {tok.vocab_size} pieces"
    )
  for name, value in dataclasses.asdict(architecture).items():
    expected = getattr(theirs, name, value)
    if value != expected and name not in TRAINING_FIELDS:
      raise ConfigError(f"config.model.{name}={value!r}: config.init_from={cfg.init_from!r} has {expected!r}")
  return architecture


def _check_length(cfg: Config, architecture: TransformerConfig, position_shift: int) -> None:
  if cfg.seq_len > architecture.max_len:
    raise ConfigError(f"config.seq_len={cfg.seq_len}: the model takes at most {architecture.max_len} (model.max_len)")
  if architecture.positions == "learned" and cfg.seq_len + position_shift > architecture.max_len:
    raise ConfigError(
      f"config.seq_len={cfg.seq_len}: the model has {architecture.max_len} positions (model.max_len), of which"
      f" peft={cfg.peft.name!r} takes {position_shift}"
    )


def _make_tasks(cfg: Config, architecture: TransformerConfig, tok: Tokenizer, source: Any) -> dict[str, Task]:
  """The task of every stream. source: as a function of (stream, split)."""
  each = lambda name, stream: _make_task(name, stream, source, architecture, tok, cfg.seq_len)
  room = cfg.seq_len - plug.make("peft", cfg.peft).num_virtual_tokens
  return {name: each(name, stream).fitted(room) for name, stream in cfg.all_streams.items()}


def _make_task(name: str, stream: Stream, source: Any, architecture: TransformerConfig, tok: Tokenizer, seq_len: int) -> Task:
  """The stream's task; a task with an empty label set gets that of the training split."""
  task: Task = plug.make("task", stream.task)
  if task.targets:
    task = _with_targets(name, stream, task, getattr(source(name, "train"), task.targets, ()))
    task = _balanced(task, source(name, "train"))
  task = _with_texts(name, stream, task, source(name, "train"))
  if task.needs_mask and tok.mask_id is None:
    raise ConfigError(f"stream {name!r}: task {stream.task.name!r} needs a tokenizer with a mask token; this one has none")
  task = task.read_with(tok, architecture.causal)
  task.check(tok, seq_len)
  if task.causal is not None and task.causal != architecture.causal:
    kinds = {True: "autoregressive (model.causal=True)", False: "bidirectional (model.causal=False)"}
    raise ConfigError(
      f"stream {name!r}: task {stream.task.name!r} needs a backbone that is {kinds[task.causal]},"
      f" this one is {kinds[architecture.causal]}"
    )
  return task


def _with_texts(name: str, stream: Stream, task: Task, source: Any) -> Task:
  """The task that reads as many texts of an example as the source gives: a pair, and what does not answer it."""
  pairs, num_hard_negatives = getattr(source, "pairs", False), getattr(source, "num_hard_negatives", 0)
  if getattr(task, "pair", False) and not pairs or pairs and not hasattr(task, "pair"):
    number = lambda two: "two texts" if two else "one text"
    raise ConfigError(
      f"stream {name!r}: task {stream.task.name!r} reads {number(not pairs)} per example,"
      f" data {stream.data.name!r} gives {number(pairs)}"
    )
  read = getattr(task, "num_hard_negatives", None)
  if read not in (0, num_hard_negatives) and (read or num_hard_negatives):
    takes = "reads no more than two texts" if read is None else f"is told task.num_hard_negatives={read}"
    raise ConfigError(
      f"stream {name!r}: task {stream.task.name!r} {takes}, data {stream.data.name!r} gives {num_hard_negatives} beside a pair"
    )
  told: dict[str, Any] = {"pair": True} if pairs and not getattr(task, "pair", True) else {}
  told |= {"num_hard_negatives": num_hard_negatives} if num_hard_negatives else {}
  return dataclasses.replace(task, **told)


# What a task needs of its source, by `Task.targets`: in words, how many, and the settings that give them.
TARGETS = {
  "labels": ("labelled examples of 2 classes or more", 2, "data.label"),
  "tags": ("tagged sentences of 2 tags or more", 2, "data=conll(path=FILE), data=spans(path=FILE)"),
  "answers": ("questions with answers in a text", 1, "data=squad(path=FILE)"),
  "choices": ("examples of 2 choices or more", 2, "data=choices(path=FILE)"),
  "items": ("a catalogue of 2 items or more", 2, "data=interactions(path=FILE,items_path=FILE)"),
  "numbers": ("examples labelled with numbers", 1, "data.label with data.label_type=number"),
}


def _with_targets(name: str, stream: Stream, task: Task, found: Sequence[Any]) -> Task:
  """The task with the set of targets that the training split has, where it holds one and the config gives none."""
  wanted, least, settings = TARGETS[task.targets]
  if len(found) < least:
    given = [f"data.{option}={value!r}" for option, value in stream.data.options if option in ("path", "label")]
    has = f"only {found[0]!r}" if found else f"no {task.targets} ({settings})"
    raise ConfigError(
      f"stream {name!r}: task {stream.task.name!r} needs {wanted}; data {stream.data.name!r} with"
      f" {' and '.join(given) or 'these settings'} has {has}"
    )
  held = getattr(task, task.targets, None)
  return task if held is None else dataclasses.replace(task, **{task.targets: held or tuple(found)})


def _balanced(task: Task, source: Any) -> Task:
  """A task with the class weights that its training split gives, where it asks for them."""
  if not isinstance(task, Classify) or not task.is_to_balance:
    return task
  return task.balanced(
    Counter(example["label"] for example in map(source.__getitem__, range(len(source))) if "label" in example)
  )


def _task_keys(tasks: dict[str, Task]) -> dict[str, str]:
  """Stream name -> key of its task's arrays: equal tasks share one; different tasks must not share a head's name."""
  keys: dict[str, str] = {}
  for name, task in tasks.items():
    twin = next((other for other in keys if tasks[other] == task), None)
    for clash in (other for other in keys if tasks[other] != task):
      for head, spec in tasks[clash].heads:
        if dict(task.heads).get(head, spec) != spec:
          own = "; task.head_name gives one its own" if hasattr(task, "head_name") else ""
          raise ConfigError(f"streams {clash!r} and {name!r}: both read head {head!r} but of different shape{own}")
    keys[name] = keys[twin] if twin else name
  return keys


def _check_mesh(cfg: Config, architecture: TransformerConfig, mesh: jax.sharding.Mesh) -> None:
  """Raises ConfigError where rows, their tokens or the experts cannot be split as the mesh says."""
  if cfg.batch_size % (shards := sharding.num_batch_shards(mesh)):
    names = " times ".join(axis for axis in sharding.ROWS if mesh.shape[axis] > 1)
    raise ConfigError(f"config.batch_size={cfg.batch_size}: must be divisible by {shards}, the mesh's {names} devices")
  for length in cfg.length_buckets or (cfg.seq_len,):
    if length % (parts := mesh.shape["sequence"]):
      raise ConfigError(f"config.mesh.sequence={parts}: must divide the length of rows, {length}")
  if architecture.num_experts % (parts := mesh.shape["expert"]):
    raise ConfigError(f"config.mesh.expert={parts}: must divide model.num_experts={architecture.num_experts}")


def _accumulation(cfg: Config, mesh: jax.sharding.Mesh) -> int:
  """Micro-batches per step, so that no device takes more than `tokens_per_device` at once."""
  if cfg.loss_chunk and (odd := [n for n in (*cfg.length_buckets, cfg.seq_len) if n % cfg.loss_chunk]):
    raise ConfigError(f"config.loss_chunk={cfg.loss_chunk}: must divide config.seq_len and length_buckets; not {odd[0]}")
  rows, device_len = cfg.batch_size // sharding.num_batch_shards(mesh), cfg.seq_len // mesh.shape["sequence"]
  if cfg.tokens_per_device is None or isinstance(cfg.tokens_per_device, str):  # "auto" is settled by compiling: lm.preflight
    return 1
  if cfg.tokens_per_device < device_len:
    share = f" over config.mesh.sequence={mesh.shape['sequence']}" if device_len < cfg.seq_len else ""
    raise ConfigError(f"config.tokens_per_device={cfg.tokens_per_device}: one row has config.seq_len={cfg.seq_len}{share}")
  return next(n for n in sharding.accumulations(cfg.batch_size, mesh) if rows // n * device_len <= cfg.tokens_per_device)


def _load_base(cfg: Config, spec: Spec, path: Path) -> Base:
  """The base's parameters that this model has; heads may be missing on either side if they train, anything else is an error."""
  step, flat = saved.load_params(path, mesh=spec.mesh)
  wanted = {name: box.value.shape for name, box in tree.flatten(spec.model.abstract).items()}
  bad = [name for name in wanted.keys() & flat.keys() if wanted[name] != flat[name].shape]
  bad += [name for name in wanted.keys() ^ flat.keys() if not name.startswith("head_")]
  if bad := sorted(bad, key=lambda name: name.startswith("head_")):
    raise ConfigError(f"config.init_from={cfg.init_from!r}: parameters missing, unknown or of another shape: {', '.join(bad)}")
  if frozen := sorted(name for name in wanted.keys() - flat.keys() if not spec.peft.trainable(name)):
    head, peft = _part(frozen[0], flat), cfg.peft.name
    raise ConfigError(f"config.init_from={cfg.init_from!r}: has no {head}, which config.peft={peft!r} does not train")
  parts = lambda names, others: ", ".join(sorted({_part(name, others) for name in names - others})) or "none"
  notice = f"new: {parts(wanted.keys(), flat.keys())}; left out: {parts(flat.keys(), wanted.keys())}"
  return Base(path, step, tree.sha256(tree.unflatten(flat)), {name: flat[name] for name in wanted.keys() & flat.keys()}, notice)


def _part(name: str, others: Collection[str]) -> str:
  """The head of a parameter, or its module where others have something of that head: head_classify/out."""
  head, module = name.split("/")[:2]
  return f"{head}/{module}" if any(other.startswith(f"{head}/") for other in others) else head
