"""A corpus made clean: documents through filters, one after the other, into files of jsonl and a report; or tokenised by Beam.

Documents stream through all filters at once in the source's order; what a filter remembers are hashes. So the text may be
larger than memory, and the same source and filters write the same bytes.
"""

import contextlib
import dataclasses
import gzip
import json
import os
import uuid
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lm import files, plug
from lm.config import Config, ConfigError, Plug
from lm.data import beam, encode
from lm.data.filters.filter import Batch, Document
from lm.data.source import located
from lm.report import Table

COMPRESS = ("", "gz", "zst")


@dataclasses.dataclass(frozen=True)
class Prepare:
  """What is read, what is done with it, and where it goes."""

  data: Plug
  filters: tuple[Plug, ...]
  output: Path  # a folder that does not exist
  split: str = "train"
  compress: str = ""  # of COMPRESS
  shard_mb: int = 256  # [MB] of text in a file, before compression

  def __post_init__(self):
    if self.compress not in COMPRESS:
      raise ConfigError(f"compress={self.compress!r}: accepted are {', '.join(filter(None, COMPRESS))}, and '' for none")
    if self.shard_mb < 1:
      raise ConfigError(f"shard_mb={self.shard_mb}: accepted are 1 and numbers above")
    if not self.filters:
      raise ConfigError(f"filters: none is given; there are: {', '.join(plug.names('filter'))}")
    if os.path.lexists(self.output):
      raise ConfigError(f"output={str(self.output)!r}: exists already; nothing is overwritten")


@dataclasses.dataclass
class Counts:
  """Of the documents that have come by."""

  documents: int = 0
  characters: int = 0


def prepare(settings: Prepare) -> dict[str, Any]:
  """Writes output/part-00000.jsonl, ..., and output/report.json, which it returns; all at once when everything is done.

  Returns:
    {"data", "split", "fingerprint", "before": counts, "filters": [{"filter", counts after it, its notes}], "after", "files"}

  Raises:
    ConfigError: a plug-in or an option that does not exist, a source that gives more than text, no document that stays.
  """
  filters = [plug.make("filter", each) for each in settings.filters]
  source = plug.make("data", settings.data, split=settings.split)
  name = f"data {settings.data.name!r}, split {settings.split!r}"
  if not len(source):
    raise ConfigError(f"{name}: no examples")
  if source[0].keys() != {"text"}:
    raise ConfigError(f"{name}: gives {', '.join(source[0])}; accepted are sources that give text alone")
  counts = [Counts() for _ in range(len(filters) + 1)]
  notes: list[dict[str, Any]] = [{} for _ in filters]
  batches = _count(_read(source), counts[0])
  for each, note, after in zip(filters, notes, counts[1:], strict=True):
    batches = _count(each.apply(batches, note), after)
  with _written_at_once(settings.output) as folder:
    sizes = _write(batches, folder, settings)
    if not sizes:
      raise ConfigError(f"{name}: the filters leave none of {counts[0].documents:,} documents")
    report = {
      "data": settings.data.to_dict(),
      "split": settings.split,
      "fingerprint": source.fingerprint(),
      "before": dataclasses.asdict(counts[0]),
      "filters": [
        {"filter": each.to_dict(), **dataclasses.asdict(after), **note}
        for each, after, note in zip(settings.filters, counts[1:], notes, strict=True)
      ],
      "after": dataclasses.asdict(counts[-1]),
      "files": sizes,
    }
    files.write_json(folder / "report.json", report)
  return report


def build_stores(cfg: Config, split: str, num_parts: int, options: Sequence[str]) -> list[str]:
  """Builds the stores of a config's streams with Apache Beam, whose options are given; returns a line about each.

  Raises:
    ValueError: as `build.make_run`; Beam is not installed.
  """
  from lm import build  # imports jax, which filters do without

  tok, tasks, source = build.make_encoder(cfg)
  lines = []
  for name, stream in cfg.all_streams.items():
    read = source(name, split)
    work = beam.make_work(located(stream.data, cfg.data_dir), read, (tok, tasks[name]), build.cache_dir(cfg), num_parts)
    found = beam.build(work, read, options)
    tokens = int(found.lengths.sum())
    lines.append(f"{found.path}: stream {name!r}, split {split!r}, {found.num_sequences:,} sequences, {tokens:,} tokens")
  return lines


def table(report: dict[str, Any]) -> Table:
  """Documents and characters before and after each filter."""
  before, *rest = [report["before"], *report["filters"]]
  rows = [["before", f"{before['documents']:,}", "", f"{before['characters']:,}", ""]]
  for each in rest:
    options = ", ".join(f"{name}={value}" for name, value in each["filter"].items() if name != "name")
    name = each["filter"]["name"] + (f"({options})" if options else "")
    lost = [f"{each[unit] - before[unit]:+,}" for unit in ("documents", "characters")]
    rows.append([name, f"{each['documents']:,}", lost[0], f"{each['characters']:,}", lost[1]])
    before = each
  return Table("", ["filter", "documents", "change", "characters", "change"], rows)


def _read(source: Any) -> Iterator[Batch]:
  number = 0
  for chunk in encode.chunks(source, range(len(source))):
    yield [Document(number + i, example["text"]) for i, example in enumerate(chunk)]
    number += len(chunk)


def _count(batches: Iterable[Batch], counts: Counts) -> Iterator[Batch]:
  for batch in batches:
    counts.documents += len(batch)
    counts.characters += sum(len(document.text) for document in batch)
    yield batch


def _write(batches: Iterable[Batch], folder: Path, settings: Prepare) -> dict[str, int]:
  """The documents as {"text": ...} per line; documents of each file by its name."""
  sizes: dict[str, int] = {}
  lines = (json.dumps({"text": each.text}, ensure_ascii=False).encode() + b"\n" for batch in batches for each in batch)
  line = next(lines, None)
  while line is not None:
    name, count, size = f"part-{len(sizes):05d}.jsonl{settings.compress and '.' + settings.compress}", 0, 0
    with _created(folder / name) as file:
      while line is not None and size < settings.shard_mb * 10**6:
        file.write(line)
        count, size = count + 1, size + len(line)
        line = next(lines, None)
    sizes[name] = count
  return sizes


@contextlib.contextmanager
def _created(path: Path) -> Generator[Any, None, None]:
  """A new file that takes bytes and compresses them as its suffix says; the same bytes make the same file."""
  with path.open("wb") as raw:
    if path.suffix == ".gz":
      with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        yield file
    elif path.suffix == ".zst":
      import pyarrow

      with pyarrow.CompressedOutputStream(pyarrow.PythonFile(raw, "w"), "zstd") as file:
        yield file
    else:
      yield raw


@contextlib.contextmanager
def _written_at_once(output: Path) -> Generator[Path, None, None]:
  """A folder beside the place, renamed when everything is in it; after an error, or if the place is taken, it is removed."""
  with files.new_folder(output.with_name(f".{output.name}.{uuid.uuid4().hex}"), f"output={str(output)!r}:") as temporary:
    yield temporary
    try:
      os.rename(temporary, output)  # not onto a folder that holds something
    except OSError as error:
      raise ConfigError(f"output={str(output)!r}: exists by now; nothing is overwritten") from error
