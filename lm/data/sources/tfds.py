"""TensorFlow Datasets through their random-access data sources (ArrayRecord or Parquet). TensorFlow is not needed.

A data set is read where it was prepared, <data_dir>/<name>/[<config>/]<version>; nothing is downloaded.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data.source import check_split

# Without TensorFlow the builders of these groups are found only once the groups are imported.
GROUPS = ("text", "question_answering", "summarization", "translate", "text_simplification", "structured")
AHEAD = 256  # rows that are read at once
NO_LABEL = -1  # what a ClassLabel holds where the label is kept secret: the test splits of GLUE


@dataclasses.dataclass(frozen=True)
class Tfds:
  """Examples as {"text"}, with "text_pair" where `text` names two features, and "label" where there is a ClassLabel.

  `tfds:glue/sst2` is short for tfds(dataset='glue/sst2'). Its validation[0] -> {"text": "it 's a charming ...", "label":
  "positive"}; an example of label -1 has none. Parquet files are held in memory, ArrayRecord files are not.
  """

  split: str = "train"
  dataset: str = ""  # name[/config][:version], e.g. glue/sst2; the newest version that is prepared, if unset
  data_dir: str = ""  # folder of prepared data sets; unset is $TFDS_DATA_DIR, else ~/tensorflow_datasets
  train: str = "train"  # what the training split is, e.g. train[:90%]
  validation: str = "validation"  # what the validation split is, e.g. train[90%:]
  test: str = "test"  # what the test split is
  text: tuple[str, ...] = ()  # feature, or two for pairs; unset is 'text', else the only Text feature
  label: str = ""  # ClassLabel feature; unset is the only one, if there is one

  def __post_init__(self):
    check_split(self.split)
    if not re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", self.dataset):
      raise ConfigError(f"data.dataset={self.dataset!r}: accepted is name[/config][:version], e.g. glue/sst2")
    if len(self.text) > 2:
      raise ConfigError(f"data.text={self.text!r}: accepted are one feature, or two for pairs")

  @property
  def labels(self) -> tuple[str, ...]:
    """The names of the ClassLabel, in its order; () without one."""
    return tuple(self._features[self._label].names) if self._label else ()

  @property
  def pairs(self) -> bool:
    """Whether an example has two texts."""
    return len(self._text) == 2

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, str]:
    row = self._rows[index]
    texts = [row[name].decode() if isinstance(row[name], bytes) else row[name] for name in self._text]
    example = dict(zip(("text", "text_pair"), texts, strict=False))
    label = int(row[self._label]) if self._label else NO_LABEL
    return example if label == NO_LABEL else example | {"label": self.labels[label]}

  def locate(self, index: int) -> dict[str, Any]:
    """The data set and the row of an example in its split."""
    return {"dataset": f"{self._builder.info.full_name}:{self._spec}", "row": index + 1}

  def fingerprint(self) -> str:
    """Hash of the name with its version, the split, the sizes of its shards, and the features that are read."""
    info = self._builder.info
    shards = {name: [part.num_bytes, *part.shard_lengths] for name, part in info.splits.items()}
    return hashlib.sha256(json.dumps([info.full_name, self._spec, shards, self._text, self._label]).encode()).hexdigest()

  def describe(self) -> str:
    """One line: what it is and how many examples each split has."""
    counts = ", ".join(f"{name} {part.num_examples:,}" for name, part in self._builder.info.splits.items())
    label = f", label {self._label!r} of {len(self.labels)}" if self._label else ""
    return f"tfds {self._builder.info.full_name}: {counts} examples; text {' and '.join(map(repr, self._text))}{label}"

  @property
  def _spec(self) -> str:
    return getattr(self, self.split)

  @functools.cached_property
  def _builder(self) -> Any:
    tfds = _tfds()
    return tfds.builder_from_directory(_find(self.dataset, self.data_dir))

  @property
  def _features(self) -> Any:
    return self._builder.info.features

  @functools.cached_property
  def _text(self) -> tuple[str, ...]:
    found = _of_kind(self._features, "Text")
    for name in self.text:
      if name not in found:
        raise ConfigError(f"data.text={name!r}: {self.dataset} has the Text features {', '.join(found) or 'none'}")
    if not self.text and "text" not in found and len(found) != 1:
      raise ConfigError(f"data.text: not set; of {self.dataset} accepted are one or two of {', '.join(found) or 'none'}")
    return self.text or (("text",) if "text" in found else tuple(found))

  @functools.cached_property
  def _label(self) -> str:
    found = _of_kind(self._features, "ClassLabel")
    if self.label and self.label not in found:
      raise ConfigError(f"data.label={self.label!r}: {self.dataset} has the ClassLabel features {', '.join(found) or 'none'}")
    return self.label or (found[0] if len(found) == 1 else "")

  @functools.cached_property
  def _data(self) -> Any:
    try:
      return self._builder.as_data_source(self._spec)
    except NotImplementedError as error:
      form = self._builder.info.file_format.value
      raise ConfigError(f"data.dataset={self.dataset!r}: prepared as {form}; {_how(self.dataset, self.data_dir)}") from error

  @functools.cached_property
  def _rows(self) -> "_Rows":
    """The rows of the split. tfds 4.9.10 reads the whole shards of a slice where they are Parquet."""
    splits = self._builder.info.splits
    try:
      shards = splits[self._spec].file_instructions
    except ValueError as error:
      raise ConfigError(
        f"data.{self.split}={self._spec!r}: {self.dataset} has {', '.join(splits)}, and slices of them such as train[:90%]"
      ) from error
    if len(self._data) == sum(shard.take for shard in shards):
      return _Rows(self._data, range(len(self._data)))
    before = np.cumsum([0, *(shard.examples_in_shard for shard in shards)])
    assert len(self._data) == before[-1], "whole shards"
    parts = [first + shard.skip + np.arange(shard.take) for first, shard in zip(before[:-1], shards, strict=True)]
    return _Rows(self._data, np.concatenate([np.zeros(0, np.int64), *parts]).tolist())


class _Rows:
  """Rows of a data source by their places there. In order they are read many at once: 25 us for a short one, 97 us alone."""

  def __init__(self, data: Any, places: Sequence[int]):
    self._data, self._places = data, places
    self._first, self._ahead = 0, []

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> Any:
    if not 0 <= index < len(self):
      raise IndexError(index)
    end = self._first + len(self._ahead)
    if not self._first <= index < end:
      count = AHEAD if index == end else 1
      self._first, self._ahead = index, self._data.__getitems__(list(self._places[index : index + count]))
    return self._ahead[index - self._first]


def _tfds() -> Any:
  try:
    import tensorflow_datasets
  except ImportError as error:
    raise ConfigError(f"data 'tfds': {error}; pip install tensorflow-datasets importlib_resources") from error
  return tensorflow_datasets


def _of_kind(features: Any, kind: str) -> list[str]:
  """Names of the top-level features of a class, sorted: a copy that is read from its files has them in any order."""
  cls = getattr(_tfds().features, kind)
  return sorted(name for name, feature in features.items() if isinstance(feature, cls))


def _find(dataset: str, data_dir: str) -> Any:
  """The folder of the newest prepared version.

  Raises:
    ConfigError: there is none; it says what to do, which depends on whether this installation can prepare the name.
  """
  from etils import epath

  name, _, version = dataset.partition(":")
  root = epath.Path(_data_dir(data_dir)) / name
  try:
    configs = [] if not root.is_dir() or _versions(root) else [path for path in root.iterdir() if _versions(path)]
  except ImportError as error:  # "Please install gcsfs"
    raise ConfigError(f"data.data_dir={data_dir!r}: {error}") from error
  if len(configs) > 1:
    raise ConfigError(f"data.dataset={dataset!r}: accepted is one of {', '.join(sorted(f'{name}/{c.name}' for c in configs))}")
  found = _versions(configs[0] if configs else root)
  if version and version not in found and found:
    raise ConfigError(f"data.dataset={dataset!r}: prepared are the versions {', '.join(found)}")
  if not found:
    raise ConfigError(f"data.dataset={dataset!r}: not prepared in {_data_dir(data_dir)}; {_how(dataset, data_dir)}")
  return found[version] if version else list(found.values())[-1]


def _data_dir(data_dir: str) -> str:
  return os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))


def _versions(folder: Any) -> dict[str, Any]:
  """The prepared versions in a folder, the newest last."""
  paths = folder.iterdir() if folder.is_dir() else ()
  found = [p for p in paths if re.fullmatch(r"\d+\.\d+\.\d+", p.name) and (p / "dataset_info.json").exists()]
  return {path.name: path for path in sorted(found, key=lambda path: tuple(map(int, path.name.split("."))))}


def _how(dataset: str, data_dir: str) -> str:
  """What to do about a data set that is not prepared so that it can be read at random."""
  tfds, (name, _, _) = _tfds(), dataset.partition(":")
  for group in GROUPS:
    importlib.import_module(f"tensorflow_datasets.{group}")
  copy = "copy one there that was prepared with file_format='array_record'"
  known = tfds.core.registered.list_imported_builders()
  if name.split("/")[0] not in known:
    near = ", ".join(difflib.get_close_matches(name.split("/")[0], known, 3))
    return f"tfds has no builder of this name{near and f' (the nearest: {near})'}; correct it, or {copy}"
  try:
    builder = tfds.builder(dataset, data_dir=_data_dir(data_dir))
  except ImportError as error:
    return f"its builder cannot run here ({_reason(error)}); {copy}"
  except ValueError as error:  # no such config or version
    catalog = f"https://www.tensorflow.org/datasets/catalog/{name.split('/')[0]}"
    return f"tfds does not have it ({_reason(error)}); see {catalog}"
  group = ".".join(type(builder).__module__.split(".")[:2])
  where, version = _data_dir(data_dir), builder.info.full_name
  imports = "import tensorflow_datasets as tfds" + ("" if group.endswith(".datasets") else f", {group}")
  call = f"tfds.builder('{dataset}', data_dir='{where}', file_format='array_record').download_and_prepare()"
  return f'prepare {version} once with: python -c "{imports}; {call}"'


def _reason(error: BaseException) -> str:
  """The first sentence of what TFDS says, without the arguments in front of it."""
  return str(error).splitlines()[0].partition('}": ')[2].split(". ")[0]
