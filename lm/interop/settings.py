"""config.json of a Hugging Face directory <-> `TransformerConfig`, by the data of the family files."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from lm import plug
from lm.config import ConfigError
from lm.files import read_object
from lm.models import presets
from lm.models.family import Family, Key
from lm.models.rope import HIGH, LOW
from lm.models.transformer_config import TRAINING_FIELDS, TransformerConfig

ACTIVATIONS = {
  "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu", "relu2": "relu_squared", "silu": "silu", "swish": "silu",
}  # fmt: skip
WRITTEN = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu_squared": "relu2", "silu": "silu"}
KINDS = {"full_attention": "global", "sliding_attention": "local"}
POOLING = {"cls": "first", "mean": "mean"}
# Fields of rotary positions, and what they are called there.
ROPE = {
  "rope_base": "rope_theta", "local_rope_base": "rope_theta", "rope_factor": "factor",
  "rope_original_len": "original_max_position_embeddings",
}  # fmt: skip
HINTS = get_type_hints(TransformerConfig)


def families() -> list[Family]:
  """All that the family files describe."""
  names = [module.name for module in pkgutil.iter_modules(presets.__path__)]
  return [family for name in names for family in importlib.import_module(f"{presets.__name__}.{name}").FAMILIES]


def read(directory: Path) -> tuple[Family, TransformerConfig, dict[str, Any]]:
  """Family, architecture and the settings of a directory's config.json.

  Raises:
    ConfigError: no such file, a model type that no family file describes (it lists those that are), or a setting that has no
      counterpart here.
  """
  path = directory / "config.json"
  if not path.is_file():
    raise ConfigError(f"{directory}: no config.json; accepted is a Hugging Face directory or the workdir of a run")
  found = read_object(path)
  known = {name: family for family in families() for name in (family.model_type, *family.aliases)}
  family = known.get(str(found.get("model_type")))
  if family is None:
    raise ConfigError(f"{path}: model_type={found.get('model_type')!r} is unknown; known are {', '.join(sorted(known))}")
  try:
    settings = found | _object(family.nested, found.get(family.nested))
    return family, _architecture(family, settings), settings
  except ValueError as error:
    raise ConfigError(f"{path}: {error}") from error


def write(family: Family, cfg: TransformerConfig) -> dict[str, Any]:
  """What transformers needs to build the model: the inverse of `read` (heads and tokens are the caller's)."""
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  written: dict[str, Any] = {"model_type": family.model_type}
  written |= {name: plain(values[0]) for name, values in family.only.items()}
  for field, key in family.keys.items():
    written |= dict.fromkeys((key.name, *key.also), _written(field, cfg, key))
  if family.window:
    if cfg.window:  # a bidirectional model's setting counts both sides
      written[family.window] = cfg.window if cfg.causal else 2 * (cfg.window - 1)
    names = {ours: theirs for theirs, ours in KINDS.items()}
    written["layer_types"] = [names[kind] for kind in cfg.layer_kinds]
  if family.rope:
    whole: dict[str, Any] = {"rope_theta": cfg.rope_base, "rope_type": "default"}
    if cfg.rope_factor != 1:
      whole |= {"rope_type": "linear", "factor": cfg.rope_factor}
    if cfg.rope_original_len:
      whole |= {
        "rope_type": "llama3", "original_max_position_embeddings": cfg.rope_original_len,
        "low_freq_factor": LOW, "high_freq_factor": HIGH,
      }  # fmt: skip
    local = {"rope_theta": cfg.local_rope_base or cfg.rope_base, "rope_type": "default"}
    written["rope_parameters"] = whole if family.rope == "flat" else {"full_attention": whole, "sliding_attention": local}
  return written


def read_pooling(family: Family, settings: Mapping[str, Any]) -> str:
  """How the classifier reads the hidden states: a value of the classify task, "" for the family's only way."""
  return POOLING[settings.get(family.pooling, "cls")] if family.pooling else ""


def write_pooling(family: Family, causal: bool, pooling: str) -> dict[str, str]:
  """The inverse.

  Raises:
    ConfigError: the family's classifier reads only one place, and it is another.
  """
  if family.pooling:
    return {family.pooling: next(theirs for theirs, ours in POOLING.items() if ours == (pooling or "first"))}
  only = "last" if causal else "first"
  if pooling not in ("", only):
    raise ConfigError(f"task.pooling={pooling!r} has no counterpart in {family.classes['classifier']}, which reads the {only}")
  return {}


def has_counterpart(cfg: TransformerConfig) -> bool:
  """Whether transformers has an architecture that this model is."""
  return not all(_differences(family, cfg) for family in families())


def nearest(cfg: TransformerConfig) -> Family:
  """The family whose architecture this is.

  Raises:
    ConfigError: there is none; it says in what the nearest one differs.
  """
  differences = [(family, _differences(family, cfg)) for family in families() if family.like.causal == cfg.causal]
  family, fields = min(differences, key=lambda found: len(found[1]))
  if fields:
    ours, theirs = _plain(cfg), _plain(family.like)
    listed = ", ".join(f"{field}={getattr(ours, field)!r} (there {getattr(theirs, field)!r})" for field in fields)
    raise ConfigError(f"no architecture of transformers is this model; the nearest, {family.model_type}, has no {listed}")
  return family


def _differences(family: Family, cfg: TransformerConfig) -> list[str]:
  """Fields of a model that the family cannot say."""
  free = set(TRAINING_FIELDS) | set(family.keys) | (set(ROPE) - {"local_rope_base"} if family.rope else set())
  free |= {"local_rope_base"} if family.rope == "by_kind" else set()
  if family.rope == "flat" and "local" in cfg.layer_kinds:
    free -= {"rope_factor", "rope_original_len"}  # they would stretch local layers there
  free |= {"layer_pattern", "window"} if family.window else set()
  ours, theirs = _plain(cfg), _plain(family.like)
  return [f.name for f in dataclasses.fields(cfg) if f.name not in free and getattr(ours, f.name) != getattr(theirs, f.name)]


def _plain(cfg: TransformerConfig) -> TransformerConfig:
  """The same model with fields at their defaults where these say the same."""
  return dataclasses.replace(
    cfg,
    num_kv_heads=0 if cfg.kv_heads == cfg.num_heads else cfg.num_kv_heads,
    head_dim=0 if cfg.channels * cfg.num_heads == cfg.model_dim else cfg.head_dim,
    layer_pattern=("global",) if "local" not in cfg.layer_kinds else cfg.layer_pattern,
  )


def _architecture(family: Family, settings: Mapping[str, Any]) -> TransformerConfig:
  for name, accepted in family.only.items():
    value = settings.get(name, accepted[0])
    value = accepted[0] if value is None else tuple(value) if isinstance(value, list) else value
    if value not in accepted:
      raise ValueError(f"{name}={value!r} has no counterpart here; accepted are {', '.join(map(repr, accepted))}")
  values = {field: _read(field, key.name, _setting(settings, key)) for field, key in family.keys.items()}
  if "balance_weight" in values:  # their loss counts every choice of a token, ours is 1 per token
    values["balance_weight"] *= values["experts_per_token"]
  values["ffn_dim"] = values["ffn_dim"] or 4 * values["model_dim"]
  values["max_len"] -= family.like.position_offset
  if family.window:
    values |= _windows(family, settings, values["num_layers"])
  if family.rope:
    values |= _rope(family, settings, values.get("layer_pattern", family.like.layer_pattern))
  # What only shapes training keeps our default where their config says nothing of it.
  unsaid: dict[str, Any] = {"expert_capacity": 0.0, "router_z_weight": 0.0, "balance_weight": 0.0}
  return dataclasses.replace(family.like, **unsaid | values)


def _object(name: str, value: Any) -> dict[str, Any]:
  """A part of a config.json, {} where it is null or not there."""
  if value is not None and not isinstance(value, dict):
    raise ValueError(f"{name}={value!r}: expected an object")
  return value or {}


def _setting(settings: Mapping[str, Any], key: Key) -> Any:
  value = settings.get(key.name, settings.get(key.alias))
  if value is None and key.default is None:
    raise ValueError(f"{key.name} is not set")
  return key.default if value is None else value


def _read(field: str, name: str, value: Any) -> Any:
  value = plug.convert(name, value, HINTS[field])
  if field == "activation" and value not in ACTIVATIONS:
    raise ValueError(f"{name}={value!r} is unknown; known are {', '.join(ACTIVATIONS)}")
  if field == "activation":
    return ACTIVATIONS[value]
  if field == "attention_scale" and value <= 0:
    raise ValueError(f"{name}={value}: must be above 0")
  return value**-0.5 if field == "attention_scale" else value


def _written(field: str, cfg: TransformerConfig, key: Key) -> Any:
  if field == "activation":
    return WRITTEN[cfg.activation]
  if field == "attention_scale":
    scalar = round((cfg.attention_scale or cfg.channels**-0.5) ** -2, 6)
    return int(scalar) if scalar == int(scalar) else scalar
  if field == "head_dim" and not cfg.head_dim and not key.default:
    return None  # there too, it follows from the others
  if field == "max_len":
    return cfg.max_len + cfg.position_offset
  if field == "balance_weight":
    return cfg.balance_weight / cfg.experts_per_token
  if field.endswith("softcap"):
    return getattr(cfg, field) or None
  return getattr(cfg, {"head_dim": "channels", "num_kv_heads": "kv_heads"}.get(field, field))


def _windows(family: Family, settings: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
  pattern = family.pattern
  if family.period and settings.get(family.period) is not None:
    period = plug.convert(family.period, settings[family.period], int)
    if period < 1:
      raise ValueError(f"{family.period}={period}: must be at least 1")
    local = ("local",) * (period - 1)
    pattern = ("global", *local) if pattern[0] == "global" else (*local, "global")
  kinds = [pattern[i % len(pattern)] for i in range(num_layers)]
  if settings.get("layer_types"):
    names = settings["layer_types"]
    if not isinstance(names, list) or len(names) != num_layers or any(name not in tuple(KINDS) for name in names):
      raise ValueError(f"layer_types={names!r}: expected {num_layers} of {', '.join(KINDS)}")
    kinds = [KINDS[name] for name in names]
  if "local" not in kinds:
    return {"layer_pattern": ("global",), "window": 0}
  period = next(n for n in range(1, num_layers + 1) if all(kinds[i] == kinds[i % n] for i in range(num_layers)))
  window = _read("window", family.window, _setting(settings, Key(family.window)))
  # A bidirectional model's setting counts both sides.
  return {"layer_pattern": tuple(kinds[:period]), "window": window if family.like.causal else window // 2 + 1}


def _rope(family: Family, settings: Mapping[str, Any], pattern: tuple[str, ...]) -> dict[str, Any]:
  """Reads both forms: rope_parameters of transformers 5, and rope_theta with rope_scaling before it."""
  like = family.like
  found = _object("rope_parameters", settings.get("rope_parameters"))
  by_kind = bool(KINDS.keys() & found.keys())
  for theirs, ours in KINDS.items():
    if by_kind and ours in pattern and theirs not in found:
      raise ValueError(f"rope_parameters: {theirs} is not set")
  of_kind = lambda kind: _object(f"rope_parameters.{kind}", found.get(kind))
  whole = of_kind("full_attention") if by_kind else found or _object("rope_scaling", settings.get("rope_scaling"))
  values: dict[str, Any] = {}
  values["rope_base"] = (
    whole.get("rope_theta") or settings.get("rope_theta") or settings.get("global_rope_theta") or family.rope_base
  )
  if family.rope == "by_kind":
    local = of_kind("sliding_attention")
    if local.get("rope_type", "default") != "default":
      raise ValueError(f"rope_type={local['rope_type']!r} of local layers has no counterpart here; accepted is 'default'")
    older = settings.get("rope_local_base_freq") or settings.get("local_rope_theta") or like.local_rope_base
    values["local_rope_base"] = local.get("rope_theta") or older
  share = whole.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0
  if share != 1:
    raise ValueError(f"partial_rotary_factor={share!r}: {family.model_type} rotates all channels")
  kind = whole.get("rope_type", whole.get("type", "default"))
  if kind not in ("default", "linear", "llama3"):
    raise ValueError(f"rope_type={kind!r} has no counterpart here; accepted are default, linear, llama3")
  llama3 = kind == "llama3"
  if llama3 and (whole.get("low_freq_factor"), whole.get("high_freq_factor")) != (LOW, HIGH):
    raise ValueError(f"rope_parameters: low_freq_factor and high_freq_factor must be {LOW:g} and {HIGH:g}")
  values["rope_factor"] = _setting(whole, Key("factor")) if kind != "default" else 1.0
  values["rope_original_len"] = _setting(whole, Key("original_max_position_embeddings")) if llama3 else 0
  if family.rope == "flat" and "local" in pattern and kind != "default":
    raise ValueError(f"rope_type={kind!r}: stretches local layers too, which has no counterpart here; accepted is 'default'")
  return {field: plug.convert(f"{ROPE[field]} of rotary positions", value, HINTS[field]) for field, value in values.items()}
