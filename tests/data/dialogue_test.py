"""Layouts of conversations and preferences: each is read as the same messages, and what is none is one line."""

import numpy as np
import pytest

from lm.config import ConfigError
from lm.data.dialogue import number_answers, read_conversation, read_example, read_pair


def talk(*texts, system=""):
  """Messages of user and assistant by turns."""
  said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
  return [{"role": "system", "content": system}] * bool(system) + said


def shared(*texts):
  return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
  ("row", "expected"),
  [
    ({"messages": talk("a", "b", "c", "d")}, talk("a", "b", "c", "d")),
    ({"conversations": shared("a", "b"), "system": "s", "id": 3}, talk("a", "b", system="s")),
    ({"conversations": [{"from": "system", "value": "s"}, *shared("a", "b")], "system": "t"}, talk("a", "b", system="s")),
    ({"messages": [{"role": "system", "content": ""}, *talk("a", "b")]}, talk("a", "b")),
    ({"instruction": "a", "input": "", "output": "b"}, talk("a", "b")),
    ({"instruction": "a", "input": "x", "output": "b", "text": "no"}, talk("a\nx", "b")),
    ({"prompt": "a", "response": "b", "messages": None}, talk("a", "b")),
    ({"prompt": talk("a", "b", "c"), "completion": talk("c", "d")[1:]}, talk("a", "b", "c", "d")),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, talk("a", "b")),
  ],
)
def test_every_layout_is_the_same_messages(row, expected):
  assert read_conversation(row) == expected
  assert read_conversation({"messages": expected}) == expected


PAIR = {"prompt": talk("a"), "chosen": talk("a", "b")[1:], "rejected": talk("a", "c")[1:]}


@pytest.mark.parametrize(
  "row",
  [
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"conversations": shared("a"), "chosen": shared("", "b")[1], "rejected": shared("", "c")[1]},
    {"messages": talk("a"), "chosen": talk("", "b")[1:], "rejected": talk("", "c")[1:]},
    {"prompt": "a", "chosen": talk("a", "b"), "rejected": talk("a", "c")},
    {"chosen": talk("a", "b"), "rejected": talk("a", "c")},
  ],
)
def test_every_layout_of_a_preference_is_the_same_pair(row):
  assert read_pair(row)._asdict() == PAIR
  assert read_example(row) == PAIR
  assert read_example(read_example(row)) == PAIR


def test_what_both_begin_with_is_the_prompt():
  pair = read_pair({"chosen": talk("a", "b", "c", "d"), "rejected": talk("a", "b", "c", "e"), "system": "s"})
  assert pair.prompt == talk("a", "b", "c", system="s")
  same = read_pair({"chosen": talk("a", "b"), "rejected": talk("a", "b")})
  assert (same.prompt, same.chosen, same.rejected) == (talk("a"), talk("", "b")[1:], talk("", "b")[1:])


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ({"question": "a", "answer": "b"}, "has the columns question, answer; accepted are messages, or conversations"),
    ({}, "has the columns none; accepted"),
    ({"messages": []}, "'messages' holds nothing, expected messages"),
    ({"messages": "Hi"}, "'messages' holds a str, expected messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, r"messages\[0\].role='tool': accepted are system, user, assistant"),
    ({"messages": [{"text": "a"}]}, r"messages\[0\] has text, expected role and content"),
    ({"messages": ["a"]}, r"messages\[0\] is a str, expected role"),
    ({"messages": [*talk("a"), {"role": "system", "content": "s"}]}, r"messages\[1\].role='system'.* beginning only"),
    ({"messages": talk("a")}, "no turn of the assistant, so there is nothing to learn; the roles are user"),
    ({"messages": talk("a", " ")}, r"'messages\[1\].content' is empty"),
    ({"messages": talk("a", ["b"])}, r"'messages\[1\].content' holds a list, expected text"),
    ({"instruction": "a", "output": ""}, "'output' is empty"),
    ({"prompt": "a", "response": 3}, "'response' holds a int"),
  ],
)
def test_what_is_no_conversation_is_one_line(row, words):
  with pytest.raises(ConfigError, match=words) as error:
    read_conversation(row)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ({"prompt": "a", "response": "b"}, "has the columns prompt, response; accepted are prompt .*, chosen and rejected"),
    ({"chosen": "b", "rejected": "c"}, "has the columns chosen, rejected; accepted are prompt"),
    ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
    ({"chosen": talk("a", "b"), "rejected": talk("a", "c", "d")}, "'rejected' does not end with a turn of the assistant"),
    ({"chosen": talk("a", "b"), "rejected": talk("x", "c")}, "the prompt has no turn of the user; the roles are none"),
    ({"prompt": talk("", "b")[1:], "chosen": "b", "rejected": "c"}, "the prompt has no turn of the user.* assistant"),
  ],
)
def test_what_is_no_preference_is_one_line(row, words):
  with pytest.raises(ConfigError, match=words) as error:
    read_pair(row)
  assert "\n" not in str(error.value)


def test_answers_are_numbered():
  assert number_answers(np.asarray([0, 1, 1, 0, 1], bool)).tolist() == [0, 1, 1, 0, 2]
  assert number_answers(np.zeros(0, bool)).tolist() == []
  assert number_answers(np.asarray([1, 0, 0, 1], bool)).tolist() == [1, 0, 0, 2]
