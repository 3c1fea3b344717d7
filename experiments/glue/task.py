"""GLUE (Wang et al. 2018): fine-tuning on any of its nine tasks, from all-MiniLM-L6-v2 or `--config.init_from`.

python -m lm.main --config=experiments/glue/task.py:rte --config.data_dir=DATA --workdir=runs/glue/rte

DATA has glue/, the folders of the suite as its site gives them (CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI).
`task.py:rte-tfds` reads `tfds:glue/rte` instead, where TFDS keeps it or in `--config.data.data_dir`. Test sets have no labels:
the test split of a run is the development set once more; MNLI has the mismatched one. `experiments/glue/submit.py` makes files.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from experiments import minilm

ACCURACY = ("eval/validation/accuracy",)
PAIR = ("sentence1", "sentence2")


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A task. metrics: those of the development set that its score is the mean of, the best checkpoint's first."""

  folder: str
  text: tuple[str, ...] = PAIR  # columns, in TFDS too
  label: str = "label"
  metrics: tuple[str, ...] = ACCURACY
  dev: tuple[str, ...] = ("dev.tsv",)  # files; the last one is the test split
  tests: tuple[tuple[str, str], ...] = (("", "test.tsv"),)  # (what the server's name has behind the folder's, file)
  columns: tuple[str, ...] = ()  # of files without a line of names
  features: tuple[str, ...] = ()  # of TFDS, where they have other names
  epochs: int = 3
  number: bool = False  # labels are
  broken: bool = False  # some training rows are, and left out


TASKS = {
  "cola": Benchmark(
    "CoLA", ("sentence",), metrics=("eval/validation/matthews",), columns=("source", "label", "mark", "sentence"), epochs=5
  ),
  "sst2": Benchmark("SST-2", ("sentence",)),
  "mrpc": Benchmark(
    "MRPC",
    ("#1 String", "#2 String"),
    "Quality",
    ("eval/validation/f1", *ACCURACY),
    features=PAIR,
    epochs=5,
  ),
  "stsb": Benchmark(
    "STS-B", label="score", metrics=("eval/validation/pearson", "eval/validation/spearman"), epochs=4, number=True
  ),
  "qqp": Benchmark(
    "QQP", ("question1", "question2"), "is_duplicate", ("eval/validation/f1", *ACCURACY), broken=True
  ),
  "mnli": Benchmark(
    "MNLI",
    label="gold_label",
    metrics=(*ACCURACY, "eval/test/accuracy"),
    dev=("dev_matched.tsv", "dev_mismatched.tsv"),
    tests=(("-m", "test_matched.tsv"), ("-mm", "test_mismatched.tsv")),
    features=("premise", "hypothesis"),
  ),
  "qnli": Benchmark("QNLI", ("question", "sentence")),
  "rte": Benchmark("RTE", epochs=5),
  "wnli": Benchmark("WNLI", epochs=5),
}  # fmt: skip
ARGUMENTS = (*TASKS, *(f"{name}-tfds" for name, task in TASKS.items() if not task.number))
READING = dict(quoting=False)  # tabs part the cells, and quotes are text


def get_config(arg: str = "rte") -> ConfigDict:
  """arg: one of ARGUMENTS. STS-B is read from its files alone: its labels in TFDS are numbers, which `tfds` does not read."""
  if arg not in ARGUMENTS:
    raise ValueError(f"experiments/glue/task.py:{arg}: accepted are {', '.join(ARGUMENTS)}")
  name, _, source = arg.partition("-")
  task = TASKS[name]
  kind = "regress" if task.number else "classify"
  best = dict(best_metric=task.metrics[0], total_steps=f"{task.epochs} epochs")
  return minilm.recipe(task=dict(name=kind, pooling="mean"), data=_tfds(name) if source else _files(task), **best)


def _files(task: Benchmark) -> dict[str, Any]:
  dev = [f"glue/{task.folder}/{file}" for file in task.dev]
  data = dict(name="table", path=f"glue/{task.folder}/train.tsv", validation=dev[0], test=dev[-1], text=task.text, **READING)
  data |= dict(label=task.label, label_type="number" if task.number else "class", columns=task.columns)
  return data | (dict(on_bad_row="skip") if task.broken else {})


def _tfds(name: str) -> dict[str, Any]:
  task = TASKS[name]
  splits = ["validation"] if len(task.dev) == 1 else ["validation_matched", "validation_mismatched"]
  data = dict(name="tfds", dataset=f"glue/{name}", text=task.features or task.text)
  return data | dict(validation=splits[0], test=splits[-1])
