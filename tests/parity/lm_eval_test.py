"""Evaluator `lm_eval` beside the harness's own model over transformers: the same answers from an export of the same run."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import lm
from lm import convert, train
from lm.config import ConfigError
from lm.evals.lm_eval import Questions, flatten
from tests.conftest import SIZES, TEXTS, make_run
from tools import lm_eval

pytestmark = pytest.mark.parity
harness = pytest.importorskip("lm.evals.harness")
WORDS = ("reads", "sorts", "opens", "accepts", "holds")
LENGTH = 64  # of rows, and of the model there
TASKS = {
  "chosen": """
output_type: multiple_choice
doc_to_text: "{{text}} It"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
  "rolled": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{long}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
  "written": """
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
}


def write_tasks(folder: Path) -> None:
  rows = [
    {"text": text[:24], "long": " ".join(TEXTS[i : i + 3]), "choices": list(WORDS), "answer": i % 5, "written": text[24:30]}
    for i, text in enumerate(TEXTS[:12])
  ]
  (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'rows.jsonl'}}}}}\ntest_split: test\n"
  for name, text in TASKS.items():
    (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}fewshot_split: test\n{text}")


def options(folder: Path, **changes) -> dict:
  return {"name": "lm_eval", "include_path": str(folder), "tasks": ("chosen", "rolled", "written"), **changes}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
  """A trained run with the evaluator, its export, and the folder of tasks."""
  folder = tmp_path_factory.mktemp("lm_eval")
  write_tasks(folder)
  model = {"name": "llama-3.2-1b", **SIZES, "num_kv_heads": 2, "head_dim": 0, "vocab_size": 0, "max_len": LENGTH}
  settings = {"total_steps": 60, "eval_every": 60, "optimizer": {"name": "adamw", "learning_rate": 1e-2}, "best_metric": ""}
  run = make_run("causal", model=model, evaluators={"harness": options(folder)}, seq_len=LENGTH, **settings)
  metrics = train.train(run, folder / "run")["metrics"]
  convert.export_checkpoint(str(folder / "run"), folder / "exported")
  return SimpleNamespace(folder=folder, run=run, metrics=metrics)


def asked_there(case, bos=True):
  from lm_eval.models.huggingface import HFLM

  settings = {"device": "cpu", "dtype": "float32", "batch_size": 4, "max_length": LENGTH}
  return HFLM(pretrained=str(case.folder / "exported"), add_bos_token=bos, **settings)


def expected(case, num_fewshot=None) -> dict[str, float]:
  manager = harness.TaskManager(include_path=str(case.folder), include_defaults=False)
  settings = {"num_fewshot": num_fewshot, "task_manager": manager, "bootstrap_iters": 0}
  ask = lambda bos, tasks: dict(flatten(harness.simple_evaluate(asked_there(case, bos), tasks=tasks, **settings)))
  # Theirs would put two of the first token in front of a text that is scored as a whole.
  return ask(True, ["chosen", "written"]) | ask(False, ["rolled"])


def check(found, there):
  compared = {name: value for name, value in found.items() if "stderr" not in name}
  assert len(compared) == 5
  for name, value in compared.items():
    assert value == pytest.approx(there[name], rel=1e-4), name


def test_every_metric_of_a_run_is_that_of_its_export_in_transformers(case):
  prefix = "eval/harness/"
  found = {name.removeprefix(prefix): value for name, value in case.metrics.items() if name.startswith(prefix)}
  check(found, expected(case))
  assert found["rolled_bits_per_byte"] < 0.7 * case.metrics[f"step0/{prefix}rolled_bits_per_byte"]
  assert len(json.loads((case.folder / "run" / "lm_eval.json").read_text())["results"]) == 3


@pytest.mark.parametrize("source", ["run", "exported"])
def test_the_command_asks_few_shot_from_a_run_and_from_an_export(case, source, tmp_path, capsys, monkeypatch):
  flags = ["--tasks=chosen,rolled,written", f"--include_path={case.folder}", "--num_fewshot=2", f"--output={tmp_path}"]
  monkeypatch.setattr("sys.argv", ["lm_eval", f"--model={case.folder / source}", *flags])
  assert lm_eval.main() == 0
  assert "|chosen" in capsys.readouterr().out
  results = json.loads((tmp_path / "lm_eval.json").read_text())
  check(dict(flatten(results)), expected(case, 2))
  assert set(results["n-shot"].values()) == {2}


def test_a_long_context_loses_its_front_and_each_answer_keeps_its_place(case):
  there, tok = asked_there(case), case.run.tokenizer
  asked = harness.Asked(lm.load(case.folder / "run").engine, 4)
  pairs = [("x" * 100 + TEXTS[0][:n], TEXTS[1][: 1 + n % 7]) for n in (20, 3, 11, 0, 30)] + [("", "The"), ("a ", "b")]
  requests = [SimpleNamespace(args=pair) for pair in pairs]
  found, theirs = asked.loglikelihood(requests), there.loglikelihood(requests, disable_tqdm=True)
  np.testing.assert_allclose([value for value, _ in found], [value for value, _ in theirs], rtol=1e-4)
  assert [greedy for _, greedy in found] == [greedy for _, greedy in theirs]
  told = {"until": ["."], "max_gen_toks": 8}
  prompts = [SimpleNamespace(args=(context, told)) for context, _ in pairs if context]
  assert asked.generate_until(prompts) == there.generate_until(prompts, disable_tqdm=True)
  assert tok.encode("x" * 100)  # longer than a row


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tasks": ()}, "lm_eval: tasks is empty"),
    ({"tasks": ("chosn",)}, "lm_eval: there is no task chosn; accepted are chosen, rolled, written"),
    ({"include_path": "nowhere"}, "lm_eval: include_path='nowhere' is no folder"),
    ({"num_fewshot": -2}, "lm_eval: num_fewshot=-2: must be -1 or more"),
    ({"batch_size": 0}, "lm_eval: batch_size=0: must be 1 or more"),
    ({"max_new_tokens": LENGTH}, "lm_eval: a task writes 64 tokens, the run's rows have 64; set max_new_tokens"),
  ],
)
def test_bad_input_is_one_line(case, changes, message):
  with pytest.raises(ConfigError) as raised:
    told = {name: value for name, value in options(case.folder, **changes).items() if name != "name"}
    Questions(**told).ask(lm.load(case.folder / "run").engine)
  assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_model_without_a_head_of_words_is_one_line(case, tmp_path):
  run = make_run("classify", evaluators={"harness": options(case.folder)}, total_steps=1)
  with pytest.raises(ConfigError, match=r"^lm_eval: needs an autoregressive model \(task causal\); this one has classify"):
    train.train(run, tmp_path)
