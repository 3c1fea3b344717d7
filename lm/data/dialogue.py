"""Conversations and preferences as data sets lay them out, read as messages of a role and a text.

Read are the columns of OpenAI and Hugging Face (messages), ShareGPT (conversations of from and value), Alpaca (instruction,
input, output), prompts with their completions, and prompts with a chosen and a rejected answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config import ConfigError

Message = dict[str, str]  # {"role": "user", "content": "Hi"}

# What data sets call the roles, and what the templates call them.
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
ANSWERS = ("response", "completion")
LAYOUTS = "messages, or conversations, or instruction (with input) and output, or prompt and response or completion"
PAIRS = "prompt (or messages or conversations), chosen and rejected"


class Pair(NamedTuple):
  """A prompt and two answers to it, each of one message or more; the chosen one is better."""

  prompt: list[Message]
  chosen: list[Message]
  rejected: list[Message]


def read_example(row: Mapping[str, Any]) -> dict[str, list[Message]]:
  """{"prompt", "chosen", "rejected"} of a row with a preference, {"messages"} of any other.

  {"instruction": "Add.", "input": "1 2", "output": "3"} gives {"messages": [{"role": "user", "content": "Add.\\n1 2"},
  {"role": "assistant", "content": "3"}]}.

  Raises:
    ConfigError: as `read_pair` and `read_conversation`.
  """
  return dict(read_pair(row)._asdict()) if _is_pair(row) else {"messages": read_conversation(row)}


def read_conversation(row: Mapping[str, Any]) -> list[Message]:
  """The messages of a row; of a preference, the prompt and the chosen answer. A column `system` stands in front.

  A system message without text is left out.

  Raises:
    ConfigError: none of the LAYOUTS, an unknown role, a text that is empty or none, no turn of the assistant.
  """
  if _is_pair(row):
    pair = read_pair(row)
    return [*pair.prompt, *pair.chosen]
  row = _filled(row)
  answer = next((name for name in ANSWERS if name in row), "")
  if name := next((name for name in ("messages", "conversations") if name in row), ""):
    found = _messages(row, name)
  elif {"instruction", "output"} <= row.keys():
    texts = [_text(row, "instruction"), *([_text(row, "input")] if row.get("input") else [])]
    found = [_message("user", "\n".join(texts)), _message("assistant", _text(row, "output"))]
  elif "prompt" in row and answer:
    found = [*_turns(row, "prompt", "user"), *_turns(row, answer, "assistant")]
  else:
    raise ConfigError(_wrong_columns(row, LAYOUTS))
  found = _with_system(row, found)
  if not any(message["role"] == "assistant" for message in found):
    raise ConfigError(f"no turn of the assistant, so there is nothing to learn; the roles are {_roles(found)}")
  return found


def read_pair(row: Mapping[str, Any]) -> Pair:
  """The preference of a row. Where chosen and rejected are whole conversations, what both begin with is the prompt.

  Raises:
    ConfigError: no PAIRS, or as `read_conversation`; answers that are not the assistant's.
  """
  row = _filled(row)
  if not _is_pair(row):
    raise ConfigError(_wrong_columns(row, PAIRS))
  chosen, rejected = (_turns(row, name, "assistant") for name in ("chosen", "rejected"))
  if chosen[0]["role"] != "assistant":  # whole conversations, beside which a prompt would be there twice
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
      shared += 1
    if shared == len(chosen) == len(rejected):
      shared = max(i for i, message in enumerate(chosen) if message["role"] == "assistant" or not i)
    prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
  else:
    name = next((name for name in ("prompt", "messages", "conversations") if name in row), "")
    if not name:
      raise ConfigError(_wrong_columns(row, PAIRS))
    prompt = _turns(row, name, "user")
  prompt = _with_system(row, prompt)
  for name, answer in (("chosen", chosen), ("rejected", rejected)):
    if not answer or answer[-1]["role"] != "assistant":
      raise ConfigError(f"{name!r} does not end with a turn of the assistant; the roles are {_roles([*prompt, *answer])}")
  if not any(message["role"] == "user" for message in prompt):
    raise ConfigError(f"the prompt has no turn of the user; the roles are {_roles(prompt) or 'none'}")
  return Pair(prompt, chosen, rejected)


def read_prompt(said: str | Sequence[Mapping[str, Any]]) -> list[Message]:
  """The messages that a model is to answer: a text, which the user says, or messages, the last of which is the user's.

  Raises:
    ConfigError: an unknown role, a text that is empty or none, another's turn at the end.
  """
  found = _turns({"messages": said}, "messages", "user")
  if found[-1]["role"] != "user":
    raise ConfigError(f"messages: the last one is the user's, who is answered; the roles are {_roles(found)}")
  return found


def number_answers(said_N: np.ndarray) -> np.ndarray:
  """The number of the answer that a token is of, from 1, and 0 for others; said_N: what the assistant says, bool [N].

  [0 1 1 0 1] gives [0 1 1 0 2].
  """
  begins_N = said_N & ~np.concatenate([np.zeros(1, bool), said_N[:-1]])
  return np.where(said_N, np.cumsum(begins_N), 0)


def _is_pair(row: Mapping[str, Any]) -> bool:
  return row.get("chosen") is not None and row.get("rejected") is not None


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
  """The columns that hold something."""
  return {name: value for name, value in row.items() if value is not None}


def _wrong_columns(row: Mapping[str, Any], accepted: str) -> str:
  return f"the example has the columns {', '.join(row) or 'none'}; accepted are {accepted}"


def _roles(messages: Sequence[Message]) -> str:
  return ", ".join(message["role"] for message in messages)


def _message(role: str, text: str) -> Message:
  return {"role": role, "content": text}


def _text(row: Mapping[str, Any], name: str) -> str:
  value = row[name]
  if not isinstance(value, str):
    raise ConfigError(f"{name!r} holds a {type(value).__name__}, expected text")
  if not value.strip():
    raise ConfigError(f"{name!r} is empty")
  return value


def _turns(row: Mapping[str, Any], name: str, role: str) -> list[Message]:
  """A column that holds a text of that role, one message, or messages."""
  if isinstance(row[name], str):
    return [_message(role, _text(row, name))]
  return _messages({name: [row[name]]} if isinstance(row[name], Mapping) else row, name)


def _messages(row: Mapping[str, Any], name: str) -> list[Message]:
  """{"role", "content"} or {"from", "value"} of every entry of a column."""
  value, found = row[name], []
  if not isinstance(value, list | tuple) or not value:
    raise ConfigError(f"{name!r} holds {'nothing' if value == [] else f'a {type(value).__name__}'}, expected messages")
  for i, entry in enumerate(value):
    keys = ("from", "value") if isinstance(entry, Mapping) and "from" in entry else ("role", "content")
    if not isinstance(entry, Mapping) or not set(keys) <= entry.keys():
      has = f"has {', '.join(map(str, entry)) or 'nothing'}" if isinstance(entry, Mapping) else f"is a {type(entry).__name__}"
      raise ConfigError(f"{name}[{i}] {has}, expected role and content, or from and value")
    role, text = (entry[key] for key in keys)
    if role not in ROLES:
      raise ConfigError(f"{name}[{i}].{keys[0]}={role!r}: accepted are {', '.join(ROLES)}")
    if ROLES[role] == "system" and i:
      raise ConfigError(f"{name}[{i}].{keys[0]}={role!r}: a system message stands at the beginning only")
    if ROLES[role] == "system" and isinstance(text, str) and not text.strip():
      continue
    found.append(_message(ROLES[role], _text({f"{name}[{i}].{keys[1]}": text}, f"{name}[{i}].{keys[1]}")))
  if not found:
    raise ConfigError(f"{name!r} holds an empty system message and nothing else")
  return found


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
  """With the text of the column `system` in front, where the messages begin otherwise."""
  if not row.get("system") or messages and messages[0]["role"] == "system":
    return messages
  return [_message("system", _text(row, "system")), *messages]
