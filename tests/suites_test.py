"""GLUE and CLUE: every task is read from files in the layout of its suite, trains, and answers the server's test files."""

import json
import re
from pathlib import Path

import jax
import pytest

from experiments import minilm, suite
from experiments.clue import rows as clue_rows
from experiments.clue import submit as clue_submit
from experiments.clue import task as clue
from experiments.glue import submit as glue_submit
from experiments.glue import task as glue
from lm import build, config, train
from lm.config import ConfigError
from tests.conftest import SIZES

WORDS = ("house", "river", "stone", "cloud", "glass")
ZH = ("今天的天气很好", "股票市场下跌了", "他们昨天赢了比赛", "新的手机很便宜", "这部电影不好看")
NUM_TEST = 3


def tsv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [*([header] if header else []), *rows]
  path.write_text("".join("\t".join(map(str, row)) + "\n" for row in lines))


def write_glue(folder: Path) -> None:
  """Twenty training rows of every task, eight of development, three of test, in the columns that the suite's files have."""
  names = {"mnli": ("entailment", "neutral", "contradiction"), "qnli": ("entailment", "not_entailment")}
  names |= {"rte": names["qnli"], "stsb": ("0.0", "2.5", "5.0")}
  for name, task in glue.TASKS.items():
    labels, root = names.get(name, ("0", "1")), folder / "glue" / task.folder
    # Of quotes that do not pair up.
    texts = lambda i, task=task: tuple(f'The "{WORDS[i % 5]} is {i} {k}' for k in range(len(task.text)))
    for file, count in [("train.tsv", 20), *((file, 8) for file in task.dev)]:
      if task.columns:
        tsv(root / file, (), [("gj04", labels[i % len(labels)], "", *texts(i)) for i in range(count)])
      else:
        header = ("index", *task.text, task.label)
        tsv(root / file, header, [(i, *texts(i), labels[i % len(labels)]) for i in range(count)])
    for _, file in task.tests:
      tsv(root / file, ("index", *task.text), [(i, *texts(i)) for i in range(NUM_TEST)])
  with (folder / "glue/QQP/train.tsv").open("a") as stream:
    stream.write("20\tonly one cell\n")
  tsv(folder / "glue/diagnostic/diagnostic.tsv", ("index", "sentence1", "sentence2"), [(0, "a", "b")])


def write_clue(folder: Path) -> None:
  """The same of CLUE, each task as its own files have it."""
  root = folder / "clue"

  def lines(name: str, row, **files: int) -> None:
    for file, count in files.items():
      path = root / name / file.replace("__", ".").replace("_json", ".json")
      path.parent.mkdir(parents=True, exist_ok=True)
      suite.write_jsonl(path, [row(i, "test" not in file) for i in range(count)])

  told = lambda known, **labels: labels if known else {"id": 0}
  counts = dict(train_json=20, dev_json=8, test_json=NUM_TEST)
  pair = lambda i, known, names: (
    {"sentence1": f"{ZH[i % 5]}{i}", "sentence2": ZH[-i % 5]} | told(known, label=names[i % len(names)])
  )
  lines("afqmc_public", lambda i, known: pair(i, known, ("0", "1")), **counts)
  lines("cmnli_public", lambda i, known: pair(i, known, ("neutral", "entailment", "contradiction", "-")), **counts)
  lines("ocnli_public", lambda i, known: pair(i, known, ("neutral", "entailment", "contradiction", "-")),
        train__50k_json=20, dev_json=8, test_json=NUM_TEST)  # fmt: skip
  named = lambda key: (
    lambda i, known: {"sentence": f"{ZH[i % 5]}{i}"} | told(known, **{"label": f"10{i % 2}", key: f"n{i % 2}"})
  )
  lines("tnews_public", named("label_desc"), **counts)
  lines("iflytek_public", named("label_des"), **counts)
  span = {"span1_index": 0, "span1_text": "今天", "span2_index": 3, "span2_text": "天气"}
  lines("cluewsc2020_public", lambda i, known: {"text": f"{ZH[0]}{i}", "target": span}
        | told(known, label=("true", "false")[i % 2]), **counts)  # fmt: skip
  lines("csl_public", lambda i, known: {"id": i, "keyword": ["天气", "股票"], "abst": f"{ZH[i % 5]}{i}"}
        | ({"label": str(i % 2)} if known else {}), **counts)  # fmt: skip
  for split, count in (("train", 20), ("dev", 8), ("test", NUM_TEST)):
    known = lambda i, split=split: [{"text": "股票", "answer_start": len(str(i))}] if split != "test" else []
    asked = lambda i, known=known: {"id": f"Q{i}", "question": "什么下跌了", "answers": known(i)}
    data = [{"title": f"{i}", "paragraphs": [{"context": f"{i}{ZH[1]}", "qas": [asked(i)]}]} for i in range(count)]
    (root / "cmrc2018_public").mkdir(exist_ok=True)
    (root / "cmrc2018_public" / f"{split}.json").write_text(json.dumps({"data": data}))
  idiom = lambda i, known: {
    "content": [f"{ZH[0]}#idiom{i:03}#{ZH[i % 5]}{i}#idiom9{i:02}#"],
    "candidates": [f"词{k}" for k in range(10)],
  }
  lines("chid_public", idiom, train_json=10, dev_json=4, test1__1_json=NUM_TEST)
  for split, count in (("train", 10), ("dev", 4)):
    answers = {f"#idiom{i:03}#": i % 10 for i in range(count)} | {f"#idiom9{i:02}#": 1 for i in range(count)}
    (root / "chid_public" / f"{split}_answer.json").write_text(json.dumps(answers))
  (root / "c3_public").mkdir()
  for file, count in {"d-train": 10, "m-train": 10, "d-dev": 4, "m-dev": 4, "test1.1": NUM_TEST}.items():
    known = lambda i, file=file: {"answer": ZH[i % 2]} if "test" not in file else {"id": i}
    rows = [
      [[f"{ZH[2]}{i}"], [{"question": "怎么样", "choice": list(ZH[: 2 + i % 3]), **known(i)}], f"{i}"] for i in range(count)
    ]
    (root / "c3_public" / f"{file}.json").write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("suites")
  write_glue(folder)
  write_clue(folder)
  said = list(clue_rows.convert(folder))
  assert said[0].startswith("cmnli: train 15, dev 6, test 3 rows in "), said[0]  # those marked "-" are gone
  return folder


def make(name: str, data: Path, cache: Path, monkeypatch):
  """The run of "glue/rte" with a small random model in the place of its base."""
  monkeypatch.setattr(minilm, "directory", lambda: "unused")
  kind, _, task = name.partition("/")
  model = {"name": "bert-tiny", **SIZES, "max_len": 1024}
  settings = {"init_from": "", "model": json.dumps(model), "tokenizer": "bytes", "total_steps": "1", "eval_every": "1"}
  settings |= {"optimizer.warmup_steps": "0", "data_dir": str(data), "cache_dir": str(cache)}
  return build.make_run(config.load(f"experiments/{kind}/task.py:{task}", settings), jax.devices()[:1])


ALL = [*(f"glue/{name}" for name in glue.TASKS), *(f"clue/{name}" for name in clue.TASKS)]
TRAINED = ("glue/stsb", "glue/mnli", "clue/tnews", "clue/cmrc", "clue/chid", "clue/c3")  # one of each form


@pytest.mark.parametrize("name", ALL)
def test_its_files_are_read_with_their_labels(name, data, tmp_path, monkeypatch):
  run = make(name, data, tmp_path, monkeypatch)
  (task,), (key,) = run.tasks.values(), run.tasks
  counted = run.loader.batch(0)[key]["weights" if "weights" in run.loader.batch(0)[key] else "labelled"]
  assert counted.any()
  labels = {"mnli": 3, "cmnli": 3, "ocnli": 3}.get(name.partition("/")[2], 2)
  if hasattr(task, "labels"):
    assert len(task.labels) == labels
  if hasattr(task, "choices"):
    assert len(task.choices) == {"clue/chid": 10, "clue/c3": 4}[name]


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_scored_and_answers_the_test_files(name, data, tmp_path, monkeypatch, capsys):
  kind, _, task = name.partition("/")
  train.train(make(name, data, tmp_path / "cache", monkeypatch), tmp_path / "runs" / task)
  module = {"glue": glue_submit, "clue": clue_submit}[kind]
  metrics = {"glue": {n: t.metrics for n, t in glue.TASKS.items()}, "clue": clue_submit.METRICS}[kind]
  flags = [f"--runs={tmp_path / 'runs'}", f"--data_dir={data}", f"--output={tmp_path / 'out'}"]
  monkeypatch.setattr("sys.argv", ["submit", *flags])
  assert suite.main("", kind.upper(), metrics, module.write) == 0
  said = capsys.readouterr().out
  assert f"average of 1 of {len(metrics)} tasks" in " ".join(said.split())
  files = sorted((tmp_path / "out").iterdir())
  if kind == "glue":
    expected = ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"] if task == "mnli" else [f"{glue.TASKS[task].folder}.tsv"]
    assert [file.name for file in files] == expected
    for file in files:
      lines = file.read_text().splitlines()
      assert lines[0] == "index\tprediction"
      assert [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(1 if file.name == "AX.tsv" else NUM_TEST)]
      if task == "stsb":
        assert all(re.fullmatch(r"[0-5]\.\d{3}", line.split("\t")[1]) for line in lines[1:])
    return
  (file,) = files
  assert file.name == f"{clue_submit.CALLED[task]}_predict.json"
  if task in ("cmrc", "chid"):
    found = json.loads(file.read_text())
    assert len(found) == {"cmrc": NUM_TEST, "chid": 2 * NUM_TEST}[task]
    assert all(value in range(10) if task == "chid" else isinstance(value, str) for value in found.values())
    return
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  assert len(rows) == NUM_TEST and all({"id", "label"} <= set(row) for row in rows)
  if task == "tnews":
    assert {(row["label"], row["label_desc"]) for row in rows} <= {("100", "n0"), ("101", "n1")}


def test_glues_server_gets_numbers_of_classes_where_its_files_have_them():
  said = lambda label: {"label": label, "scores": {"negative": 0.1, "positive": 0.9}}
  assert [glue_submit._answer("sst2", said(label)) for label in ("negative", "positive")] == ["0", "1"]
  assert (
    glue_submit._answer("rte", {"label": "entailment", "scores": {"entailment": 1.0, "not_entailment": 0.0}}) == "entailment"
  )
  assert glue_submit._answer("stsb", {"value": 5.3}) == "5.000"


def test_scores_are_the_mean_of_the_means_of_metrics(tmp_path):
  for name, values in {"a": {"x": 0.5, "y": 0.7}, "b": {"x": 0.9}}.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "summary.json").write_text(json.dumps({"status": "finished", "metrics": values}))
  found = suite.scores(tmp_path, {"a": ("x", "y"), "b": ("x",), "c": ("x",)})
  assert suite.average(found) == pytest.approx(75)
  with pytest.raises(ConfigError, match="holds no finished run of c"):
    suite.scores(tmp_path, {"c": ("x",)})


def test_marks_of_wsc_stand_around_their_words():
  target = {"span1_index": 0, "span1_text": "小明", "span2_index": 4, "span2_text": "他"}
  (row,) = clue_rows.wsc({"text": "小明说，他累了", "target": target, "label": "true"})
  assert row == {"sentence1": "[小明]说，_他_累了", "sentence2": "小明", "label": "true"}


def test_a_row_of_chid_has_one_blank_that_is_asked_for():
  rows = list(clue_rows.chid({"content": ["甲#idiom001#乙#idiom002#丙"], "candidates": ["x", "y"]}, {"#idiom001#": 1}))
  assert [row["context"] for row in rows] == ["甲________乙____丙", "甲____乙________丙"]
  assert [row.get("label") for row in rows] == [1, None]


@pytest.mark.parametrize("kind", ["glue", "clue"])
def test_an_unknown_task_is_one_line(kind):
  with pytest.raises(ConfigError, match=f"experiments/{kind}/task.py:none: accepted are "):
    config.load(f"experiments/{kind}/task.py:none", {})


@pytest.mark.parametrize("name", [name for name in glue.ARGUMENTS if name.endswith("-tfds")])
def test_the_same_task_is_read_from_tfds(name, monkeypatch):
  monkeypatch.setattr(minilm, "directory", lambda: "unused")
  data = dict(config.load(f"experiments/glue/task.py:{name}", {}).data.options)
  assert data["dataset"] == f"glue/{name.removesuffix('-tfds')}"
  assert (data["validation"], data["test"]) in {("validation",) * 2, ("validation_matched", "validation_mismatched")}
