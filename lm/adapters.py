"""Several adapters over one base: read beside it, chosen by name, added up with weights.

An adapter is a tree of what it has otherwise than the base, and the method around the model that reads it. To choose one is to
choose a tree: adapters of equal methods share all that is compiled.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm import record, saved, tree
from lm.config import ConfigError, Plug
from lm.interop import adapter, weights
from lm.interop.adapters.format import ADAPTER
from lm.models.head_spec import HeadSpec
from lm.models.model import Model
from lm.peft.lora import Lora
from lm.peft.peft import Peft
from lm.pretrained import Pretrained, write_adapter
from lm.tasks.task import Task

HOW = ("linear", "cat", "svd")


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
  """What adapters stand on. folder: of its checkpoint. name: the path or id that it was asked for by. params: by name.

  tasks, max_len: without an adapter, as `Predictor` has them.
  """

  folder: Path
  name: str
  model: Model
  params: Mapping[str, Any]
  tasks: Mapping[str, Task] = dataclasses.field(default_factory=dict)
  max_len: int = 0

  @functools.cached_property
  def sha256(self) -> str | None:
    """Of its parameters."""
    return tree.sha256(tree.unflatten(self.params))


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
  """What one has of its own. params: by name, its leaves and heads. heads, tasks: of the model with it.

  max_len: tokens of the longest row that it has learned from, 0 if unknown.
  """

  method: Peft
  params: Mapping[str, Any]
  heads: tuple[tuple[str, HeadSpec], ...]
  tasks: Mapping[str, Task]
  max_len: int = 0

  def around(self, base: Model) -> Model:
    """The base's model with it."""
    return dataclasses.replace(base, heads=self.heads, tuner=self.method)


def load(source: str, base: Base, which: str | int = "last") -> Adapter:
  """The adapter that a run trained beside its base, or that is in a directory of peft.

  Raises:
    ConfigError: it is none, or one of another base.
  """
  folder = saved.find(source, "adapter")
  if base.model.tuner:
    base.model.tuner.merge({})  # says that it cannot be
  found = _of_run(folder, base, which) if saved.is_workdir(folder) else _of_peft(folder, base)
  found = _plain(found)
  same = lambda name, value: name in base.params and np.array_equal(np.asarray(base.params[name]), np.asarray(value))
  own = {name: value for name, value in found.params.items() if not same(name, value)}
  return dataclasses.replace(found, params=own)


def merge(
  adapters: Mapping[str, Adapter], shares: Mapping[str, float], base: Base, how: str = "linear", rank: int = 0
) -> Adapter:
  """The weighted sum of LoRA adapters, as the library peft has it (`add_weighted_adapter`).

  linear: of both factors, by the square roots of the weights, which is rough; of one rank. cat: of the products, all factors
  side by side; its rank is the sum. svd: of the products, as near as a product of `rank` can be (that of the largest, if 0).
  Heads that the base has differ from it by the weighted sum of their differences; of others there can be one.

  Raises:
    ConfigError: other methods, heads that cannot be added up, or ranks that differ.
  """
  if how not in HOW:
    raise ConfigError(f"how={how!r}: accepted are {', '.join(HOW)}")
  if rank < 0 or rank and how != "svd":
    raise ConfigError(f"rank={rank}: accepted is 1 or more with how='svd', 0 with others")
  chosen = {name: find(adapters, name) for name in shares}
  methods = {name: _lora(name, value, base) for name, value in chosen.items()}
  if not chosen:
    raise ConfigError("adapters: none is given to merge")
  (first, *others) = chosen.values()
  if any(other.heads != first.heads for other in others):
    raise ConfigError(f"{', '.join(chosen)}: have different heads; accepted are adapters for one task")
  ranks = [method.rank for method in methods.values()]
  if how == "linear" and len(set(ranks)) > 1:
    raise ConfigError(f"how='linear': the ranks are {', '.join(map(str, ranks))}; accepted are equal ones, or how=cat and svd")
  rank = sum(ranks) if how == "cat" else rank or max(ranks)
  products = {name: method.leaves(chosen[name].params) for name, method in methods.items()}
  paths = sorted(set().union(*products.values()))
  params: dict[str, Any] = {}
  for path in paths:
    parts = [(shares[name] * methods[name].scale, own[path]) for name, own in products.items() if path in own]
    for key, array in zip("ab", _add(parts, how, rank), strict=True):
      params[f"{path}/lora/{ADAPTER}/{key}"] = array
  targets = "|".join(re.escape(path.removeprefix("backbone/")) for path in paths)
  method = Lora(rank=rank, alpha=float(rank), targets=targets, adapter=ADAPTER)
  return dataclasses.replace(first, method=method, params=params | _heads(chosen, shares, base))


def _lora(name: str, found: Adapter, base: Base) -> Lora:
  """Its method."""
  _check_beside(name, found, base)
  if type(found.method) is not Lora:
    method = type(found.method).__name__.lower()
    raise ConfigError(f"adapter={name!r}: is of peft={method!r}; accepted for a merge are adapters of lora")
  return found.method


def _check_beside(name: str, found: Adapter, base: Base) -> None:
  """Raises ConfigError where it changes the base itself, as PiSSA does: it is no sum of the base and something."""
  changed = [key for key in found.params if key in base.params and not key.startswith("head_")]
  if changed:
    raise ConfigError(f"adapter={name!r}: changes {changed[0]} of the base itself; accepted are adapters beside it")


def _add(parts: list[tuple[float, Mapping[str, Any]]], how: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """Factors [..., inputs, rank] and [..., rank, outputs] of the sum of weighted products."""
  pairs = [(share, np.asarray(own["a"]), np.asarray(own["b"])) for share, own in parts]
  if how == "linear":
    roots = [abs(share) ** 0.5 for share, *_ in pairs]
    a = sum(np.copysign(root, share) * a for root, (share, a, _) in zip(roots, pairs, strict=True))
    b = sum(root * b for root, (*_, b) in zip(roots, pairs, strict=True))
  elif how == "cat":
    a = np.concatenate([share * a for share, a, _ in pairs], axis=-1)
    b = np.concatenate([b for *_, b in pairs], axis=-2)
  else:
    u, s, v = np.linalg.svd(sum(share * (a @ b) for share, a, b in pairs), full_matrices=False)
    a, b = u[..., :rank], s[..., :rank, None] * v[..., :rank, :]
  missing = [(0, 0)] * (a.ndim - 2)
  fill = (0, rank - a.shape[-1])  # of modules that not all adapters have, or that are smaller
  return np.pad(a, [*missing, (0, 0), fill]).astype(np.float32), np.pad(b, [*missing, fill, (0, 0)]).astype(np.float32)


def _heads(chosen: Mapping[str, Adapter], shares: Mapping[str, float], base: Base) -> dict[str, Any]:
  """Parameters of heads."""
  found: dict[str, Any] = {}
  for name in sorted({name for value in chosen.values() for name in value.params if name.startswith("head_")}):
    having = {key: np.asarray(value.params[name]) for key, value in chosen.items() if name in value.params}
    if name in base.params:
      below = np.asarray(base.params[name])
      found[name] = below + sum(np.float32(shares[key]) * (array - below) for key, array in having.items())
    elif len(having) > 1:
      raise ConfigError(f"{', '.join(having)}: each has {name} of its own, which the base lacks; accepted is one such adapter")
    else:
      (found[name],) = having.values()
  return found


def save(found: Adapter, base: Base, directory: Path) -> None:
  """Writes it as peft loads it onto the base; errors as `pretrained.write_adapter`, and a folder that holds something."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ConfigError(f"{directory}: holds something already; nothing is overwritten")
  _check_beside(str(directory), found, base)
  params, ids = tree.unflatten({**base.params, **found.params}), saved.token_ids(base.folder)
  whole = Pretrained(found.around(base.model), params, tasks=found.tasks, token_ids=ids)
  write_adapter(whole, directory, base.name, base.sha256 or "")


def find(adapters: Mapping[str, Adapter], name: str) -> Adapter:
  """That of a name; raises ConfigError with those that there are."""
  if name not in adapters:
    raise ConfigError(f"adapter={name!r}: there is none; accepted are {', '.join(adapters) or 'none, as none was added'}")
  return adapters[name]


def _of_run(folder: Path, base: Base, which: str | int) -> Adapter:
  cfg, trained_on = record.load_config(folder), record.read_manifest(folder)["base"]
  if cfg.peft == Plug("full") or not trained_on:
    raise ConfigError(
      f"adapter={str(folder)!r}: trained peft={cfg.peft.name!r} from init_from={cfg.init_from!r}; accepted are runs that"
      " trained some parameters beside a base"
    )
  _check_base(folder, cfg.init_from, trained_on["sha256"], base)
  _, _, own = saved.load_parts(folder, which)
  tasks = saved.load_tasks(folder, which)
  return Adapter(saved.read_method(folder), own, saved.read_model(folder, which).heads, tasks, cfg.seq_len)


def _of_peft(folder: Path, base: Base) -> Adapter:
  below = saved.find_adapted(folder)
  if below is None:
    raise ConfigError(f"adapter={str(folder)!r}: is no adapter; accepted are workdirs of runs, and directories of peft")
  name, known = str(adapter.read_config(folder)[1]["base_model_name_or_path"]), adapter.base_hash(folder)
  if not known and below.resolve() != base.folder.resolve():
    known = tree.sha256(tree.unflatten(saved.load_params(below)[1])) or ""
  if known:
    _check_base(folder, name, known, base)
  found = adapter.read(folder, saved.scan(base.folder))
  of_heads = [leaf for leaf in found.checkpoint.leaves if leaf.name.startswith("head_")]
  heads = weights.load(dataclasses.replace(found.checkpoint, leaves=tuple(of_heads), added={}))
  return Adapter(found.method, {**found.leaves, **heads}, found.checkpoint.model.heads, saved.load_tasks(folder))


def _check_base(folder: Path, name: str, sha256: str | None, base: Base) -> None:
  if sha256 and sha256 != base.sha256:
    raise ConfigError(
      f"adapter={str(folder)!r}: was trained on {name!r} of hash {sha256[:12]}, not on {base.name!r} of {str(base.sha256)[:12]}"
    )


def _plain(found: Adapter) -> Adapter:
  """The same with what it is called, and what matters while training, put aside: adapters of one kind have equal methods."""
  fields = {field.name for field in dataclasses.fields(found.method)}
  named = getattr(found.method, "adapter", ADAPTER)
  method = dataclasses.replace(
    found.method, **{name: value for name, value in (("adapter", ADAPTER), ("dropout_rate", 0.0)) if name in fields}
  )
  renamed = {re.sub(rf"/{re.escape(named)}/(?=[^/]+(/[^/]+)?$)", f"/{ADAPTER}/", name): x for name, x in found.params.items()}
  return dataclasses.replace(found, method=method, params=renamed)
