"""Conversations: what is learned, that rows keep them whole and apart, the loss in float64, answers in the same template."""

import json
import math

import jax
import numpy as np
import pytest

import lm
from lm import train
from lm.config import ConfigError
from lm.data import template
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.tasks.sft import Sft
from tests.conftest import make_data, make_run
from tests.contracts.tasks_test import start
from tests.data.dialogue_test import talk
from tests.data.hf_tokenizer_test import write_files
from tests.data.template_test import SIGNS, UNMARKED
from tools import generate

TALK = {"messages": talk("Hi", "Yo", "Bye", "So long", system="Be short")}


def counted(task, example=TALK):
  """The text of the labels that count."""
  (stored,) = task.prepare(example, Bytes())
  rows = {"segment_ids": np.ones((1, len(stored["tokens"]) - 1), int), "tokens": stored["tokens"][None, :-1]}
  rows |= {"labels": stored["tokens"][None, 1:], "said": stored["said"][None, 1:]}
  found = task.corrupt(rows, None, Bytes(), 0)
  return "".join(Bytes().piece(int(i)) for i in found["labels"][found["weights"] > 0]).replace("▁", " ")


def test_what_is_learned():
  assert counted(Sft()) == "Yo</s>So long</s>"
  assert counted(Sft(loss_on="last")) == "So long</s>"
  whole = "system:<0x0A>Be short</s>user:<0x0A>Hi</s>assistant:<0x0A>Yo</s>user:<0x0A>Bye</s>assistant:<0x0A>So long</s>"
  assert counted(Sft(loss_on="all")) == whole
  assert counted(Sft(template="chatml")) == "Yo<|im_end|>So long<|im_end|>"
  assert counted(Sft(), {"instruction": "a", "input": "b", "output": "c"}) == "c</s>"
  assert counted(Sft(), {"prompt": "a", "chosen": "good", "rejected": "bad"}) == "good</s>"


def test_what_counts_is_not_stored_so_that_another_choice_reads_the_same_corpus():
  assert "loss_on" not in Sft.prepare_fields
  (stored,) = Sft().prepare(TALK, Bytes())
  assert sorted(set(stored["said"].tolist())) == [0, 1, 2]


def make_long_run(**settings):
  long = [{"prompt": f"{i}", "response": "x" * (5 * i + 1)} for i in range(24)]
  return make_run("sft", data={"name": "memory", "rows": tuple(map(json.dumps, long))}, **settings)


def test_no_conversation_goes_on_in_another_row_and_what_is_cut_is_counted():
  run = make_long_run(batch_size=8)
  rows = run.loader._rows[0]
  stored = run.load("sft", "train").store
  assert rows.plan.num_split == 0
  assert rows.plan.num_truncated == (stored.lengths - 1 > 64).sum() > 3
  assert sorted(rows.plan.sequence.tolist()) == list(range(24))
  assert (rows.plan.start == 0).all()
  assert f"{rows.plan.num_truncated:,}" in run.loader.report().splitlines()[1].split()
  batches = [run.loader.batch(step)[INPUTS] for step in range(3)]
  for inputs in batches:
    first = inputs["segment_ids"] > np.pad(inputs["segment_ids"], ((0, 0), (1, 0)))[:, :-1]
    assert (inputs["tokens"][first] == Bytes().bos_id).all()
  assert max(inputs["segment_ids"].max() for inputs in batches) > 1


def test_conversations_of_a_row_do_not_see_each_other_and_the_loss_is_that_of_float64():
  """One by one, each in a row of its own, computed from the logits in float64: the sums are those of the packed rows."""
  run, params = start("sft", "gpt2-tiny")
  objective, model = run.program.spec.objective, run.program.spec.model
  (task,), tok, batch = run.tasks.values(), run.tokenizer, run.loader.batch(0)
  compute = jax.jit(objective.sums)
  logits = jax.jit(lambda p, x: model.logits(p, "lm", model.hidden(p, x).hidden_BTD, x["row"]))
  rows, found = run.loader._rows[0], {"loss": 0.0, "accuracy": 0.0, "weight": 0.0}
  for row in run.loader._orders[0](0)[:8]:
    for piece in range(*rows.plan.row_offsets[row : row + 2]):
      example = run.source("sft", "train")[int(rows.plan.sequence[piece])]
      (stored,) = task.prepare(example, tok)
      inputs = {"tokens": np.zeros((1, 96), np.int32), "segment_ids": np.zeros((1, 96), np.int32)}
      n = len(stored["tokens"]) - 1
      inputs["tokens"][0, :n], inputs["segment_ids"][0, :n] = stored["tokens"][:-1], 1
      inputs |= {"positions": np.arange(96, dtype=np.int32)[None], "row": np.zeros(1, np.int32)}
      logits_TV = np.asarray(logits(params, inputs)[0, :n], np.float64)
      log_p_TV = logits_TV - np.log(np.exp(logits_TV).sum(-1, keepdims=True))
      said = np.flatnonzero(stored["said"][1:])
      found["loss"] -= log_p_TV[said, stored["tokens"][1:][said]].sum()
      found["accuracy"] += (log_p_TV.argmax(-1)[said] == stored["tokens"][1:][said]).sum()
      found["weight"] += len(said)
  sums, weights = compute(params, batch), objective.denominators(batch)
  assert float(weights["sft/loss"]) == found["weight"] > 50
  assert batch[INPUTS]["segment_ids"].max() == 2
  np.testing.assert_allclose(sums["sft/loss"], found["loss"], rtol=1e-5)
  np.testing.assert_allclose(sums["sft/accuracy"], found["accuracy"], rtol=1e-5)


@pytest.mark.parametrize(
  ("task", "words"),
  [
    ({"template": "vicuna"}, "task.template='vicuna': accepted are chatml, llama3, gemma, qwen, plain, own"),
    ({"template": "own"}, "template='own': the tokenizer has none"),
    ({"loss_on": "user"}, "task.loss_on='user': accepted are all, answers, last"),
  ],
)
def test_bad_settings_are_one_line(task, words):
  with pytest.raises(ValueError, match=words):
    make_run("sft", task={"name": "sft", **task})


@pytest.mark.parametrize(
  ("data", "words"),
  [
    (make_data("causal"), "the example has the columns text; accepted are messages, or conversations"),
    ({"name": "memory", "rows": ('{"messages": [{"role": "bot", "content": "a"}]}',)}, "role='bot': accepted are system, user"),
    ({"name": "memory", "rows": ('{"prompt": "a", "response": ""}',)}, "'response' is empty"),
    ({"name": "memory", "rows": ('{"messages": [{"role": "user", "content": "a"}]}',)}, "no turn of the assistant"),
  ],
)
def test_bad_examples_are_one_line(data, words):
  with pytest.raises(ConfigError, match=words) as error:
    make_run("sft", data=data)
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run that learned eight answers by heart."""
  folder = tmp_path_factory.mktemp("runs") / "sft"
  rows = [json.dumps({"prompt": f"number {i}", "response": "abcdefgh"[i] * 3}) for i in range(8)]
  data = {"name": "memory", "rows": tuple(rows)}
  train.train(make_run("sft", data=data, total_steps=150, optimizer={"name": "adamw", "learning_rate": 1e-2}), folder)
  return folder


def test_step_zero_is_a_guess_among_all_tokens(workdir):
  metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  first, last = (next(m for m in order if "eval/validation/loss" in m) for order in (metrics, metrics[::-1]))
  assert first["eval/validation/loss"] == pytest.approx(math.log(261), abs=0.5)
  assert first["eval/validation/perplexity"] == pytest.approx(math.exp(first["eval/validation/loss"]))
  assert last["eval/validation/accuracy"] > 0.95
  assert not any(name.endswith("bits_per_byte") for name in first)  # answers are not all of the text


def test_what_was_learned_is_answered_in_the_template_of_the_run(workdir):
  model = lm.load(workdir)
  assert model.template == "plain"
  asked = [f"number {i}" for i in range(8)]
  found = model.chat([*asked, [{"role": "user", "content": "number 3"}]], max_new_tokens=12, temperature=0)
  assert found[:8] == [letter * 3 for letter in "abcdefgh"]
  assert found[8] == found[3]
  assert model.chat([]) == []
  raw = model.generate([Bytes().decode(template.tokenize(talk("number 2"), Bytes(), "plain", prompt=True)[0])], 12, 0)
  assert raw != found[2:3]  # its text has no specials: a template is more than text


def test_a_tokenizers_own_template_is_learned_and_stays_with_the_run(tmp_path):
  folder = write_files(tmp_path / "tok", "gpt2", additional_special_tokens=list(SIGNS), chat_template=UNMARKED)
  rows = tuple(json.dumps({"prompt": f"n {i}", "response": "ab"[i % 2]}) for i in range(8))
  settings = {"tokenizer": str(folder), "total_steps": 60, "optimizer": {"name": "adamw", "learning_rate": 1e-2}}
  train.train(make_run("sft", data={"name": "memory", "rows": rows}, **settings), tmp_path / "run")
  model = lm.load(tmp_path / "run")
  assert model.template == "own"
  assert template.end_of_turn("own", model.tokenizer) == model.tokenizer.find("<|im_end|>")
  assert model.chat(["n 0", "n 1", "n 6"], max_new_tokens=8, temperature=0) == ["a", "b", "a"]


@pytest.mark.parametrize(
  ("conversation", "words"),
  [
    (talk("a", "b"), "messages: the last one is the user's, who is answered; the roles are user, assistant"),
    ([{"role": "bot", "content": "a"}], r"messages\[0\].role='bot': accepted are"),
    (" ", "'messages' is empty"),
  ],
)
def test_what_cannot_be_answered_is_one_line(workdir, conversation, words):
  with pytest.raises(ConfigError, match=words):
    lm.load(workdir).chat([conversation])
  with pytest.raises(ConfigError, match="expected a list of texts or of messages, got 'Hi'"):
    lm.load(workdir).chat("Hi")


def test_the_command_line_answers_and_continues_text_when_asked(workdir, monkeypatch, capsys):
  monkeypatch.setattr(generate, "set_up_process", lambda: "")

  def say(*flags):
    monkeypatch.setattr("sys.argv", ["generate", f"--workdir={workdir}", "--prompt=number 1", "--temperature=0", *flags])
    assert generate.main() == 0
    return capsys.readouterr().out

  assert say("--max_new_tokens=12") == "bbb\n"
  assert say("--max_new_tokens=4", "--raw").startswith("number 1")
