"""CLUE 1.1 (Xu et al. 2020): fine-tuning on any of its tasks, from the Chinese model pretrained here or `--config.init_from`.

python -m experiments.clue.rows --data_dir=DATA
python -m lm.main --config=experiments/clue/task.py:afqmc --config.data_dir=DATA --workdir=runs/clue/afqmc

DATA has clue/, the folders of the suite as its site gives them (afqmc_public, ..., c3_public). Five tasks are read as they are;
`experiments.clue.rows` brings the others into rows once. The suite is not in TFDS. Test sets have no labels, so that the test
split of a run is the development set once more. `experiments/clue/submit.py` makes the files for the server.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from experiments import minilm

ROWS = "clue/rows"  # what experiments.clue.rows writes
PAIR = ("sentence1", "sentence2")


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A task. kind: of classify, choose or span_qa. seq_len: of its rows, or of all choices of one."""

  folder: str  # under DATA
  text: tuple[str, ...] = PAIR  # columns; of choose the context and the question, of span_qa none
  label: str = "label"
  kind: str = "classify"
  metric: str = "eval/validation/accuracy"
  files: tuple[str, str, str] = ("train.json", "dev.json", "test.json")
  seq_len: int = 128
  epochs: int = 3


def _rows(name: str, **settings: Any) -> Benchmark:
  return Benchmark(f"{ROWS}/{name}", files=("train.jsonl", "dev.jsonl", "test.jsonl"), **settings)


TASKS = {
  "afqmc": Benchmark("clue/afqmc_public"),
  "tnews": Benchmark("clue/tnews_public", ("sentence",), "label_desc"),
  "iflytek": Benchmark("clue/iflytek_public", ("sentence",), "label_des"),
  "cmnli": _rows("cmnli"),
  "ocnli": _rows("ocnli"),
  "wsc": _rows("wsc", epochs=10),
  "csl": _rows("csl", text=("keywords", "abstract"), seq_len=256),
  "cmrc": Benchmark("clue/cmrc2018_public", (), kind="span_qa", metric="eval/validation/exact", seq_len=256),
  "chid": _rows("chid", text=("context",), kind="choose", seq_len=1024),
  "c3": _rows("c3", text=("context", "question"), kind="choose", seq_len=1024),
}


def get_config(arg: str = "afqmc") -> ConfigDict:
  """arg: a task."""
  if arg not in TASKS:
    raise ValueError(f"experiments/clue/task.py:{arg}: accepted are {', '.join(TASKS)}")
  task = TASKS[arg]
  rows: dict[str, Any] = dict(seq_len=task.seq_len)
  if task.kind == "classify":
    rows["length_buckets"] = tuple(length for length in (32, 64, 128, 256) if length <= task.seq_len)
  else:
    rows |= dict(length_buckets=(), batch_size=16)
  best = dict(best_metric=task.metric, total_steps=f"{task.epochs} epochs")
  pooled = dict(name=task.kind) | ({} if task.kind == "span_qa" else dict(pooling="mean"))
  return minilm.recipe(init_from="runs/tnews_mlm", task=pooled, data=_data(task), optimizer=minilm.adamw(1e-3), **best, **rows)


def _data(task: Benchmark) -> dict[str, Any]:
  train, dev = (f"{task.folder}/{file}" for file in task.files[:2])
  data: dict[str, Any] = dict(path=train, validation=dev, test=dev)
  if task.kind == "span_qa":
    return data | dict(name="squad", on_bad_row="skip")
  if task.kind == "choose":
    return data | dict(name="choices", **dict(zip(("context", "question"), task.text, strict=False)))
  return data | dict(name="table", text=task.text, label=task.label)
