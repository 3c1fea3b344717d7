"""Classification by a pattern: scores are those of plain rows read one by one, what rows hold, zero-shot use of a base."""

import jax
import numpy as np
import pytest

from lm import predictor, train
from lm.data.tokenizer import Bytes
from lm.shapes import INPUTS
from lm.tasks.prompt_classify import PromptClassify
from tests.conftest import LABELS, TEXTS, make_config, make_run

TOK = Bytes()
NAMES = ("bad", "good", "so_so")


def resolved(causal, pair=False, **options):
  task = PromptClassify(labels=NAMES, pair=pair, **options)
  return task.read_with(TOK, causal)


def read(task, example, length):
  """Segments of the row as text, masks as "_", and the arrays."""
  (stored,) = task.prepare(example, TOK)
  longest = int(np.searchsorted(task.row_cost(np.arange(length + 1)), length, side="right")) - 1
  n = min(len(stored["tokens"]), longest)
  pad = lambda name: np.pad(stored[name][:n], (0, length - n), constant_values=task.fields[name].pad)[None]
  rows = {"tokens": pad("tokens"), "place": pad("place"), "label": np.atleast_1d(stored["label"])}
  found = task.corrupt(rows | {"segment_ids": (np.arange(length) < n)[None].astype(int)}, None, TOK, length)
  texts = []
  for number in range(1, task.num_segments + 1):
    mine = found["segment_ids"][0] == number
    assert found["positions"][0][mine].tolist() == list(range(mine.sum()))
    texts.append("".join("_" if i == TOK.mask_id else TOK.decode([i]) for i in found["tokens"][0][mine].tolist()))
  assert (found["segment_ids"][0] > 0).sum() == task.row_cost(np.asarray([n]))[0]
  return texts, found


def test_masks_are_as_many_as_a_word_has_pieces_and_words_of_as_many_share_a_segment():
  task = resolved(False, pattern="{text} Was {answer}.", verbalizers=("bad=x", "good=yz", "so_so=q"))
  texts, found = read(task, {"text": "Ab", "label": "good"}, 40)
  assert texts == ["Ab Was__.", "Ab Was___."]  # the bytes of " x" and " q", and of " yz"
  tokens = found["tokens"][0]
  assert (tokens[found["site_positions"][0]] == TOK.mask_id).all() and found["site_positions"].shape == (1, 5)
  assert tokens[0] == TOK.cls_id and found["label"].tolist() == [1] and found["weights"].tolist() == [1]


def test_what_is_read_before_the_last_piece_stands_in_the_row_and_words_that_begin_alike_share_it():
  task = resolved(True, pattern="Is {text}{answer}", verbalizers=("bad=abx", "good=aby", "so_so=a"))
  texts, found = read(task, {"text": "Hi", "label": "bad"}, 40)
  assert texts == ["Is Hiab"]
  assert [TOK.decode([i]) for i in found["tokens"][0][found["site_positions"][0]]] == ["i", "a", "b"]
  single = resolved(True, pattern="{text}{answer}", verbalizers=("bad=x", "good=y", "so_so=z"))
  assert read(single, {"text": "Hi"}, 40)[0] == ["Hi"]


def test_a_long_text_loses_its_end_and_the_pattern_stays():
  task = resolved(False, pattern="{text} Was {answer}.", verbalizers=("bad=x", "good=yz", "so_so=q"))
  texts, _ = read(task, {"text": "abcdefghijklmnop"}, 40)
  assert texts == ["abcdefghij Was__.", "abcdefghij Was___."]
  pair = resolved(False, True, pattern="{text}?{answer}, {text_pair}", verbalizers=("bad=x", "good=y", "so_so=z"))
  assert read(pair, {"text": "Hi", "text_pair": "there"}, 40)[0] == ["Hi?_, there"]
  assert read(pair, {"text": "Hi", "text_pair": "there"}, 12)[0] == ["Hi?_, ther"]
  with pytest.raises(ValueError, match="config.seq_len=20: a row holds 2 segments of the pattern .* accepted is 21 or more"):
    make_run("prompt_classify", seq_len=20, task={"name": "prompt_classify", "pattern": "{text}=1234={answer}"} | WORDS)


WORDS = {"verbalizers": ("module=m", "list=l", "file=f", "parser=pa", "queue=q")}


def alone(run, params, tokens, positions):
  """log p at some positions of a row of its own, float64 [V] each."""
  tokens = np.asarray([tokens], np.int32)
  inputs = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": np.arange(tokens.size)[None]}
  model, inputs = run.program.spec.model, inputs | {"row": np.zeros(1, np.int32)}
  (head, _), *_ = model.heads
  logits = model.logits(params, head, model.hidden(params, inputs).hidden_BTD, inputs["row"])[0]
  return [np.asarray(jax.nn.log_softmax(logits[i]), np.float64) for i in positions]


@pytest.mark.parametrize("causal", [False, True])
def test_scores_are_sums_of_log_probabilities_of_rows_of_their_own(causal):
  model = {"name": "gpt2-tiny" if causal else "bert-tiny", "num_layers": 2, "model_dim": 32, "num_heads": 4, "max_len": 512}
  options = {"name": "prompt_classify", "pattern": "{text} is{answer}", "verbalizers": ("module=mo", "list=ml", "file=f")}
  run = make_run("prompt_classify", task=options, model=model, seq_len=512)
  task, params, batch = run.tasks["prompt_classify"], run.init_state().params, run.loader.batch(0)
  scores = jax.device_get(jax.jit(run.program.spec.objective.predict)(params, batch)["prompt_classify/scores"])
  order = run.loader._orders[0](0)[:2]
  for row, number in enumerate(order):
    text, expected = TEXTS[number], []
    for label in task.labels:
      word = TOK.encode({"module": "mo", "list": "ml", "file": "f"}.get(label, label))
      start = [TOK.bos_id if causal else TOK.cls_id, *TOK.encode(f"{text} is")]
      tokens = [*start, *word] if causal else [*start, *[TOK.mask_id] * len(word), TOK.sep_id]
      sites = range(len(start) - causal, len(start) - causal + len(word))
      found = alone(run, params, tokens, sites)
      expected.append(sum(log_p[piece] for log_p, piece in zip(found, word, strict=True)))
    expected = np.exp(expected - np.max(expected))
    np.testing.assert_allclose(scores[row], expected / expected.sum(), rtol=1e-3, atol=1e-6)
    assert batch["prompt_classify"]["label"][row] == task.labels.index(LABELS[number])


@pytest.mark.parametrize("base", ["mlm", "causal"])
def test_a_base_has_an_opinion_at_step_zero_and_the_run_is_used(base, tmp_path):
  train.train(make_run(base, total_steps=2), tmp_path / "base")
  start = {"init_from": str(tmp_path / "base"), "model": None, "tokenizer": ""}
  run = make_run("prompt_classify", seq_len=128, total_steps=20, eval_every=20, **start)
  assert run.base.notice == "new: none; left out: none"
  found = train.train(run, tmp_path / "run")["metrics"]
  assert 0 < found["eval/validation/loss"] < found["step0/eval/validation/loss"]
  model = predictor.load(tmp_path / "run", devices=jax.devices()[:1])
  right = [row["label"] == label for row, label in zip(model.predict(TEXTS), LABELS, strict=True)]
  assert np.mean(right) == pytest.approx(found["eval/validation/accuracy"])


def test_reserved_positions_move_the_sites_with_their_rows():
  """Prompt tuning puts its positions in front of every segment."""
  plain, tuned = (make_run("prompt_classify", seq_len=128, peft=peft).loader.batch(0) for peft in ("full", PROMPT))
  read = lambda batch: np.take_along_axis(batch[INPUTS]["tokens"], batch["prompt_classify"]["site_positions"], axis=1)
  np.testing.assert_array_equal(read(plain), read(tuned))
  assert (read(tuned) == TOK.mask_id).all()


PROMPT = {"name": "prompt", "num_virtual_tokens": 3}


@pytest.mark.parametrize(
  ("task", "words"),
  [
    ({"pattern": "{text}"}, r"task.pattern='\{text\}': accepted is text with \{text\}, \{answer\}"),
    ({"pattern": "{text} {answer} {answer}"}, "once each"),
    ({"pattern": "{text} {answer} {text_pair}"}, "the data has one text per example"),
    ({"verbalizers": ("tree=t",)}, "task.verbalizers='tree=t': accepted are label=word, each label once, of file, list"),
    ({"verbalizers": ("list=",)}, "task.verbalizers='list=': accepted"),
    ({"verbalizers": ("list=a", "list=b")}, "task.verbalizers='list=b': accepted"),
    ({"verbalizers": ("list=file",)}, "the word ' file' of label 'list' is that of another label"),
    ({"pooling": "mean"}, "task.pooling='mean': no effect"),
    ({"reads": "lm"}, "task.reads='lm': is the model's; leave it unset"),
  ],
)
def test_bad_settings_are_one_line(task, words):
  with pytest.raises(ValueError, match=words):
    make_run("prompt_classify", seq_len=128, task={"name": "prompt_classify", **task})


def test_an_autoregressive_model_answers_at_the_end():
  settings = make_config("prompt_classify", task={"name": "prompt_classify", "pattern": "{answer} {text}"})
  from lm import build, config

  changed = config.from_dict(config.to_dict(settings) | {"model": {"name": "gpt2-tiny"}})
  with pytest.raises(ValueError, match=r"needs one that ends with \{answer\}"):
    build.make_run(changed, jax.devices()[:1])
