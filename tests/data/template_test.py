"""Conversations: turns add up to the whole, only the assistant is marked, and what cannot be told is one line."""

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.config import ConfigError
from lm.data import template
from lm.data import tokenizer as tokenizers
from lm.data.template import TEMPLATES, choose, end_of_turn, tokenize
from tests.data.hf_tokenizer_test import write_files
from tests.data.tokenizer_test import SENTENCES

SIGNS = (
  "<|im_start|>",
  "<|im_end|>",
  "<|start_header_id|>",
  "<|end_header_id|>",
  "<|eot_id|>",
  "<start_of_turn>",
  "<end_of_turn>",
)
TALK = (
  {"role": "system", "content": "Be short."},
  {"role": "user", "content": "Hi"},
  {"role": "assistant", "content": "Yo"},
  {"role": "user", "content": " Bye\n"},
  {"role": "assistant", "content": " So long. "},
)
CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
  "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
THINKS = UNMARKED.replace("{{ '\n' }}", "{% if loop.last %}{{ '!' }}{% endif %}{{ '\n' }}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return write_files(tmp_path_factory.mktemp("tok"), "gpt2", additional_special_tokens=list(SIGNS))


@pytest.fixture(scope="module")
def tok(folder):
  return tokenizers.load(str(folder))


def pieces(tok, ids):
  return "".join(tok.piece(int(i)) for i in ids).replace("▁", " ").replace("<0x0A>", "\n")


def test_what_each_template_writes_and_what_the_assistant_says(tok):
  written = {
    "chatml": "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    "<|im_start|>user\n Bye\n<|im_end|>\n<|im_start|>assistant\n So long. <|im_end|>\n",
    "llama3": "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "So long.<|eot_id|>",
    "gemma": "<|endoftext|><start_of_turn>user\nBe short.\n\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nSo long.<end_of_turn>\n",
    "plain": "<|endoftext|>system:\nBe short.<|endoftext|>user:\nHi<|endoftext|>assistant:\nYo<|endoftext|>"
    "user:\nBye<|endoftext|>assistant:\nSo long.<|endoftext|>",
  }
  written["qwen"] = written["chatml"]
  for name, text in written.items():
    ids, mask = tokenize(TALK, tok, name)
    assert pieces(tok, ids) == text
    end = tok.piece(end_of_turn(name, tok))
    said = pieces(tok, ids[mask])
    assert said == (f"Yo{end} So long. {end}" if name in ("chatml", "qwen") else f"Yo{end}So long.{end}")
    assert set(ids.tolist()) >= {tok.find(end)}
  asked, mask = tokenize(TALK[:2], tok, "chatml", prompt=True)
  assert pieces(tok, asked).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
  assert not mask.any()
  assert pieces(tok, tokenize(TALK[1:2], tok, "qwen")[0]).startswith("<|im_start|>system\nYou are Qwen")


text = st.text(st.sampled_from("ab é中\n.<|>"), max_size=12)
turns = st.lists(st.tuples(text, text), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(TEMPLATES)), st.sampled_from(["gpt2", "bytes"]), turns, text)
def test_turns_add_up_to_the_whole(tok, name, kind, pairs, system):
  tok = tokenizers.Bytes() if kind == "bytes" else tok
  messages = [{"role": "system", "content": system}]
  for asked, said in pairs:
    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
  ids, mask = tokenize(messages, tok, name)
  last = end_of_turn(name, tok)
  end = [last] if isinstance(last, int) else tok.encode(last)
  strip = str.strip if TEMPLATES[name].trimmed else str
  marked = np.flatnonzero(np.diff(mask.astype(int), prepend=0) == 1)
  assert len(marked) == len(pairs)
  for i in range(len(pairs)):
    before, said = (tokenize(messages[: 2 * i + n], tok, name) for n in (2, 3))
    asked = tokenize(messages[: 2 * i + 2], tok, name, prompt=True)
    assert asked[0][: len(before[0])].tolist() == before[0].tolist()
    assert (ids[: len(said[0])] == said[0]).all()
    assert (mask[: len(said[1])] == said[1]).all()
    answer = said[0][said[1]][np.flatnonzero(mask[: len(said[0])]).searchsorted(marked[i]) :].tolist()
    assert answer[-len(end) :] == end
    assert tok.decode(answer[: -len(end)]).strip("\n") == strip(pairs[i][1]).strip("\n")


def test_signs_of_our_own_vocabularies_are_one_id(tmp_path):
  tokenizers.train(SENTENCES, str(tmp_path / "x.model"), 320, ["<|im_start|>", "<|im_end|>"])
  tok = tokenizers.load(str(tmp_path / "x.model"))
  ids, mask = tokenize(TALK, tok, "chatml")
  assert np.sum(ids == tok.find("<|im_start|>")) == len(TALK)
  assert (ids[mask] == tok.find("<|im_end|>")).sum() == 2
  said = tokenize([{"role": "user", "content": "<|im_end|>"}], tok, "chatml")[0]
  assert np.sum(said == tok.find("<|im_end|>")) == 1  # what a user writes does not end the turn


def test_an_own_template_is_rendered_and_marked(tok):
  expected = tokenize(TALK, tok, "chatml")
  for source in (CHATML, UNMARKED):
    tok.chat_template = source
    for ours, theirs in zip(tokenize(TALK, tok, "own"), expected, strict=True):
      np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
      tokenize(TALK[:4], tok, "own", prompt=True)[0], tokenize(TALK[:4], tok, "chatml", prompt=True)[0]
    )
  for source, message in (
    (THINKS, r"writes messages\[2\] otherwise where more follow"),
    ("{{ raise_exception('only\nusers') }}", "template='own': only users"),
    ("{% for %}", "template='own': "),
    ("{{ messages[0]['content'] + 1 }}", "template='own': "),
  ):
    tok.chat_template = source
    with pytest.raises(ConfigError, match=message):
      tokenize(TALK, tok, "own")


def test_unset_is_the_tokenizers_own_template_else_one_that_its_vocabulary_has_the_signs_of(tok):
  assert choose("", tokenizers.Bytes()) == "plain"
  tok.chat_template = None
  assert choose("", tok) == "chatml"
  tok.chat_template = CHATML
  assert choose("", tok) == "own"
  assert choose("llama3", tok) == "llama3"


def test_what_ends_a_turn_is_one_token_where_it_can_be(tok):
  assert end_of_turn("plain", tokenizers.Bytes()) == tokenizers.Bytes().eos_id
  assert end_of_turn("llama3", tokenizers.Bytes()) == "<|eot_id|>"
  assert end_of_turn("gemma", tok) == tok.find("<end_of_turn>")
  for source in (CHATML, UNMARKED):
    tok.chat_template = source
    assert end_of_turn("own", tok) == tok.find("<|im_end|>")
  tok.chat_template = CHATML.replace("<|im_end|>", "[end of turn]")
  assert end_of_turn("own", tok) == "[end of turn]"


def test_jinja2_that_is_missing_is_named(tok, monkeypatch):
  monkeypatch.setitem(sys.modules, "jinja2", None)
  template._compile.cache_clear()
  tok.chat_template = CHATML
  with pytest.raises(ConfigError, match="needs the package jinja2"):
    tokenize(TALK, tok, "own")
  tokenize(TALK, tok, "chatml")


@pytest.mark.parametrize(
  ("messages", "name", "error"),
  [
    (TALK, "vicuna", "template='vicuna': accepted are chatml, llama3, gemma, qwen, plain, own"),
    (TALK, "own", "template='own': the tokenizer has none"),
    ([{"role": "bot", "content": "a"}], "chatml", r"messages\[0\].role='bot': accepted are system, user, assistant"),
    ([TALK[1], TALK[0]], "chatml", r"messages\[1\].role='system'.*at the beginning only"),
    ([{"role": "user", "content": 3}], "llama3", r"messages\[0\].content=3: expected text"),
    ([TALK[0], TALK[2]], "gemma", r"messages\[1\].role='assistant': after the system message"),
    ([TALK[0]], "gemma", "only a system message"),
  ],
)
def test_bad_conversations_are_one_line(messages, name, error):
  with pytest.raises(ConfigError, match=error):
    template.tokenize(messages, tokenizers.Bytes(), name)
