"""Conversations as tokens: ChatML, Llama 3, Gemma, Qwen and a plain form, and the Jinja template of a tokenizer's own config.

What the assistant says is marked, since a model is trained on that alone: its text and what ends its turn, not its header.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config import ConfigError
from lm.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
OWN = "own"  # names the tokenizer's own template
EOS = "<eos>"  # in a template, the tokenizer's end of a sequence, whatever its name
# Unicode's noncharacters, which stand in no text: they enclose what a Jinja template marks as {% generation %}.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

Message = Mapping[str, Any]  # {"role": "user", "content": "Hi"}


@dataclasses.dataclass(frozen=True)
class Template:
  """A turn is header, text, end, after. Signs in < and > are one token each where the vocabulary has them, else text."""

  header: str  # with {role}
  end: str  # ends a turn; the assistant has to learn it
  after: str = "\n"  # what stands between turns
  bos: bool = False  # whether bos begins the conversation
  assistant: str = "assistant"  # what the header calls the assistant
  trimmed: bool = False  # whether space around texts is left out
  system: str = ""  # said where the conversation has no system message
  system_turn: bool = True  # false: the system message stands in front of the first user's text


CHATML = Template("<|im_start|>{role}\n", "<|im_end|>")
TEMPLATES = {
  "chatml": CHATML,
  "llama3": Template("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", "", bos=True, trimmed=True),
  "gemma": Template("<start_of_turn>{role}\n", "<end_of_turn>", bos=True, assistant="model", trimmed=True, system_turn=False),
  "qwen": dataclasses.replace(CHATML, system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
  # For a vocabulary without signs of conversations: roles are words, and the end of a turn is that of a document.
  "plain": Template("{role}:\n", EOS, "", bos=True, trimmed=True),
}
NAMES = (*TEMPLATES, OWN)


class Turn(NamedTuple):
  """The text and its frame. spans: characters of header + text + end that the assistant says, as (start, stop)."""

  header: str
  text: str
  end: str
  spans: list[tuple[int, int]]


def choose(template: str, tok: Tokenizer) -> str:
  """The template's name; of "" the tokenizer's own, else chatml where the vocabulary has its signs, else plain.

  Raises:
    ConfigError: it is none, or own and the tokenizer has none.
  """
  if template not in ("", *NAMES):
    raise ConfigError(f"template={template!r}: accepted are {', '.join(NAMES)}")
  if template == OWN and not tok.chat_template:
    raise ConfigError(f"template={OWN!r}: the tokenizer has none; accepted are {', '.join(TEMPLATES)}")
  if template or tok.chat_template:
    return template or OWN
  return "chatml" if _find(CHATML.end, tok) is not None else "plain"


def end_of_turn(template: str, tok: Tokenizer) -> str | int:
  """What ends an answer: the id of one token, or the text where it is several. template: as `choose` gives it.

  The token of <|im_end|> in ChatML where the vocabulary has it, else that text.
  """
  if template == OWN:
    said = "yes"  # stands in for an answer: what the template marks behind it ends the turn
    text, spans = _render([{"role": "user", "content": "a"}, {"role": "assistant", "content": said}], tok, False)
    end = text[slice(*spans[-1])].rpartition(said)[2].rstrip() if spans else ""
    ids = tok.encode(end)
    return ids[0] if len(ids) == 1 else end
  end = TEMPLATES[template].end
  found = _find(end, tok)
  return end if found is None else found


def tokenize(messages: Sequence[Message], tok: Tokenizer, template: str, prompt: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """A conversation as (ids int32 [N], mask bool [N]); the mask is true on the assistant's turns, the header left out.

  [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}] in ChatML gives the tokens
  <|im_start|> user \\n Hi <|im_end|> \\n <|im_start|> assistant \\n Yo <|im_end|> \\n, of which Yo and the <|im_end|>
  behind it are marked. A built-in template's turns are encoded one by one, so a conversation's tokens begin with those of
  its first turns (its system message and what that stands in front of are one turn).

  Args:
    template: chatml, llama3, gemma, qwen (2.5), plain, or own, the Jinja template of the tokenizer's config. An own template
      without {% generation %} has to write a turn alike whether others follow or not, to tell where the assistant speaks.
    prompt: whether the header of an answer stands at the end, as a model is asked.

  Raises:
    ConfigError: a message or template that is not accepted; jinja2 is not installed.
  """
  if not template:
    raise ConfigError(f"template='': accepted are {', '.join(NAMES)}")
  if choose(template, tok) == OWN:
    text, spans = _render(list(messages), tok, prompt)
    return _encode(Turn("", text, "", spans), (), tok)
  kind = TEMPLATES[template]
  signs = re.findall(r"<[^>]*>", kind.header + kind.end)
  turns = _turns(messages, kind)
  if prompt:
    turns.append(Turn(kind.header.format(role=kind.assistant), "", "", []))
  parts = [_encode(turn, signs, tok) for turn in turns]
  bos = [tok.bos_id] if kind.bos else []
  ids = np.concatenate([np.asarray(bos, np.int32), *(ids for ids, _ in parts)])
  return ids, np.concatenate([np.zeros(len(bos), bool), *(mask for _, mask in parts)])


def _turns(messages: Sequence[Message], kind: Template) -> list[Turn]:
  turns, before = [], ""
  if kind.system and (not messages or messages[0].get("role") != "system"):
    messages = [{"role": "system", "content": kind.system}, *messages]
  for i, message in enumerate(messages):
    role, content = message.get("role"), message.get("content")
    if role not in ROLES or role == "system" and i:
      raise ConfigError(f"messages[{i}].role={role!r}: accepted are {', '.join(ROLES)}, system at the beginning only")
    if not isinstance(content, str):
      raise ConfigError(f"messages[{i}].content={content!r}: expected text")
    content = content.strip() if kind.trimmed else content
    if role == "system" and not kind.system_turn:
      before = f"{content}\n\n"
      continue
    if before and role != "user":
      raise ConfigError(f"messages[{i}].role={role!r}: after the system message, which has no turn here, comes the user")
    header = kind.header.format(role=kind.assistant if role == "assistant" else role)
    spans = [(len(header), len(header + content + kind.end))] if role == "assistant" else []
    turns.append(Turn(header, before + content, kind.end + kind.after, spans))
    before = ""
  if before:
    raise ConfigError("messages: only a system message, which has no turn of its own in this template")
  return turns


def _encode(turn: Turn, signs: Sequence[str], tok: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """(ids, mask) of a turn; a token that shares a character with a span is marked.

  Signs that the vocabulary has are one id in the frame; in the text they are what the tokenizer makes of them.
  """
  found = {sign: i for sign in signs if (i := _find(sign, tok)) is not None}
  split = lambda text: re.split(f"({'|'.join(map(re.escape, found))})", text) if found else [text]
  *before, first = split(turn.header)
  last, *after = split(turn.end)
  ids: list[int] = []
  offsets, start = [np.zeros((0, 2), np.int64)], 0
  for i, part in enumerate([*before, first + turn.text + last, *after]):  # every second one is a sign
    part_ids, part_offsets = ([found[part]], np.asarray([[0, len(part)]])) if i % 2 else tok.encode_with_offsets(part)
    ids += part_ids
    offsets.append(part_offsets + start)
    start += len(part)
  begin, end = np.concatenate(offsets).T
  marked = np.zeros(len(ids), bool)
  for first_character, stop in turn.spans:
    marked |= (begin < stop) & (end > first_character)
  return np.asarray(ids, np.int32), marked


def _find(sign: str, tok: Tokenizer) -> int | None:
  return tok.eos_id if sign == EOS else tok.find(sign)


def _render(messages: list[Message], tok: Tokenizer, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
  """The text that the tokenizer's own template gives, and where the assistant speaks."""
  compiled = _compile(tok.chat_template or "")
  specials = {"bos_token": tok.bos_id, "eos_token": tok.eos_id, "pad_token": max(tok.pad_id, 0)}
  names = {"tools": None, "documents": None} | {name: tok.piece(i) for name, i in specials.items()}
  render = lambda count, prompt: compiled.render(messages=messages[:count], add_generation_prompt=prompt, **names)
  pieces = re.split(f"([{_OPEN}{_CLOSE}])", _said(lambda: render(len(messages), prompt)))
  if len(pieces) > 1:
    text, opened, spans = "", 0, []
    for piece in pieces:
      spans += [(opened, len(text))] if piece == _CLOSE else []
      opened = len(text) if piece == _OPEN else opened
      text += piece if piece not in (_OPEN, _CLOSE) else ""
    return text, spans
  text, spans = pieces[0], []
  for i, message in enumerate(messages):
    if message.get("role") == "assistant":
      asked, answered = _said(lambda i=i: render(i, True)), _said(lambda i=i: render(i + 1, False))
      if not (answered.startswith(asked) and text.startswith(answered)):
        raise ConfigError(
          f"template={OWN!r}: it writes messages[{i}] otherwise where more follow, so what the assistant says cannot be told;"
          " accepted are templates with {% generation %} or those that do not"
        )
      spans.append((len(asked), len(answered.rstrip())))  # the space between turns comes after what ends a turn
  return text, spans


@functools.lru_cache(maxsize=8)
def _compile(source: str) -> Any:
  """A Jinja template in a sandbox, with what those of Hugging Face use."""
  try:
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox
  except ImportError as error:
    raise ConfigError(f"template={OWN!r}: needs the package jinja2, which is not installed: pip install jinja2") from error

  class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant says."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller):
      return _OPEN + caller() + _CLOSE

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
  )
  environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
  # No `strftime_now`: with today's date in a prompt, data would not follow from the config. Templates that ask for it have
  # a fixed date beside it.
  return _said(lambda: environment.from_string(source, {"raise_exception": refuse}))


def _said(call: Any) -> Any:
  """What a call gives; what Jinja says against template or messages, as a ConfigError."""
  import jinja2

  try:
    return call()
  except (jinja2.TemplateError, TypeError) as error:
    raise ConfigError(f"template={OWN!r}: {' '.join(str(error).split())}") from error
