"""The contract of a source: random access to raw examples of one split, and a fingerprint of all of them."""

import dataclasses
import os
from collections.abc import Iterable
from typing import Any, Protocol

from lm import files, plug
from lm.config import Config, ConfigError, Plug

SPLITS = ("train", "validation", "test")


class Source(Protocol):
  """A frozen dataclass with a field `split`, one of SPLITS.

  A source of labelled examples also has `labels`, the label set of its training split as a tuple of names; one whose labels
  are numbers has `numbers` instead, those of its training split; one of tagged sentences has `tags`, and gives {"tokens",
  "tags", "text"}. One whose `pairs` is true gives {"text", "text_pair"}, and with a
  `num_hard_negatives` above 0 as many in "text_negatives"; one of questions has `answers` too, `answers.kinds` of
  its training split, and gives {"answers": [{"text", "start"}, ...]} beside, whose texts stand in "text_pair". One of multiple
  choice has `choices`, what labels call them. One of recommendations has `items`, the texts of a catalogue, and gives {"item"}
  of each, then {"query", "positive"} of what users took; there may be `known(index)`, numbers of the items that the user of an
  example took before, and `popularity`, how often each was taken in train. What `describe()` returns, if it is there, is said
  when a run starts.
  `locate(index)`, if it is there, says where an example is from: {"file": "reviews.csv", "line": 3}.
  """

  @property
  def split(self) -> str: ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """One example, e.g. {"text": "...", "label": "json"}."""
    ...

  def fingerprint(self) -> str:
    """Changes whenever any example does. A run asks several times; a source that is large computes it once."""
    ...


def make(cfg: Config, stream: str, split: str) -> Source:
  """The source of a config's stream."""
  return plug.make("data", located(cfg.all_streams[stream].data, cfg.data_dir), split=split)


def located(data: Plug, folder: str) -> Plug:
  """The source with its relative paths below a folder or URL; as it is where that is ''.

  `located(text(path="a.txt"), "corpora")` -> text(path="corpora/a.txt").
  """

  def below(value: Any) -> Any:
    if not isinstance(value, str):
      return tuple(map(below, value))
    return value if not value or files.is_remote(value) else os.path.join(folder, value)

  names = getattr(plug.find("data", data.name), "PATHS", ()) if folder else ()
  return dataclasses.replace(data, options=tuple((name, below(v) if name in names else v) for name, v in data.options))


def check_split(split: str, setting: str = "data.split") -> None:
  """Raises ConfigError, which names the setting, if it is none of SPLITS."""
  if split not in SPLITS:
    raise ConfigError(f"{setting}={split!r}: accepted are {', '.join(SPLITS)}")


def list_files(source: Any, settings: Iterable[str]) -> None:
  """Makes of a pattern that was given alone, in Python, a tuple of one, and of '' one of none, as a config's are."""
  for name in settings:
    if isinstance(value := getattr(source, name), str):
      object.__setattr__(source, name, (value,) if value else ())


def locate(source: Any, index: int) -> dict[str, Any]:
  """Where an example stands: file and line, or `row`, its number from 0, of a source that has no files."""
  return source.locate(index) if hasattr(source, "locate") else {"row": index}
