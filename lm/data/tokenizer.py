"""Tokenizers behind one interface: SentencePiece models, plain bytes, and those of Hugging Face (lm/data/hf_tokenizer.py).

SentencePiece (Kudo & Richardson 2018) is trained here without normalisation, dummy prefix or whitespace removal, with byte
fallback; its own space mark U+2581, which it would read as a space, is encoded as its three bytes. So it is lossless, as
bytes are: decode(encode(s)) == s for any text. Models made elsewhere are what their makers made them.
"""

import functools
import hashlib
import io
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError

PAD, UNK, BOS, EOS, MASK = "<pad>", "<unk>", "<s>", "</s>", "[MASK]"
HF_PREFIX = "huggingface-"  # of the fingerprints of tokenizers that are saved as a folder
SPACE_MARK = "\u2581"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
UNSPACED = re.compile("[\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # kana, Han
_MAX_LINE = 1 << 16  # bytes; the trainer leaves out longer lines, so they are cut
_MIN_VOCAB = 262  # 256 bytes, the five specials, the newline
VOCAB_SIZE = 4096  # where nothing else is said
KINDS = ("unigram", "char")  # of SentencePiece: which pieces a vocabulary has, and how a text is cut into them


class Tokenizer:
  """What every tokenizer has. A sequence's first and last specials are bos and eos; encoders call them cls and sep."""

  vocab_size: int  # ids are below it; added tokens count
  pad_id: int
  unk_id: int
  bos_id: int
  eos_id: int
  mask_id: int | None
  token_bytes: np.ndarray  # int32 [V]: UTF-8 bytes that each piece stands for, 0 for specials
  pair_separators: int = 1  # sep tokens between the texts of a pair; RoBERTa has 2, and no token types
  chat_template: str | None = None  # Jinja template of a conversation

  @property
  def cls_id(self) -> int:
    """First token of an encoder's sequence."""
    return self.bos_id

  @property
  def sep_id(self) -> int:
    """Last token of an encoder's sequence."""
    return self.eos_id

  @property
  def special_ids(self) -> tuple[int, ...]:
    """Ids that stand for no text, each once."""
    ids = (self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id, self.cls_id, self.sep_id)
    return tuple(dict.fromkeys(i for i in ids if i is not None and i >= 0))

  @functools.cached_property
  def starts_word(self) -> np.ndarray:
    """bool [V]: whether a piece begins a word. One that does not belongs to the word of the piece before it.

    A word begins at a space, a sign that is no letter or digit, or a letter of a script that writes no spaces (Chinese,
    Japanese), which is a word by itself: "\u2581the" and "," and "\u4e2d" begin one, "ing" does not.
    """
    return np.array([_starts_word(self.piece(i)) for i in range(self.vocab_size)])

  def find(self, piece: str) -> int | None:
    """Id of a piece of the vocabulary by its name, such as "<extra_id_0>"; None if it has none."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without the specials of a sequence."""
    raise NotImplementedError

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text."""
    return [self.encode(text) for text in texts]

  def encode_with_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
    """`encode`, and for each id where it comes from: int32 [N, 2], text[start:stop] in characters.

    Ids that share a character (its bytes) all have its span: "é" -> [200 174], [[0 1] [0 1]] in bytes.
    """
    raise NotImplementedError

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; specials are left out."""
    raise NotImplementedError

  def piece(self, i: int) -> str:
    """What an id stands for, for people: a space as U+2581, a byte as <0xE4>, specials by name."""
    raise NotImplementedError

  def fingerprint(self) -> str:
    """Hash of everything that decides the ids."""
    raise NotImplementedError

  def save(self, workdir: Path) -> None:
    """Keeps there what `load(saved_path(workdir, self.fingerprint()))` reads."""
    raise NotImplementedError

  def same_as(self, other: "Tokenizer") -> bool:
    """Whether both give the same ids and write conversations alike."""
    return (self.fingerprint(), self.chat_template) == (other.fingerprint(), other.chat_template)


def _starts_word(piece: str) -> bool:
  byte = _BYTE.match(piece)
  if byte:  # one of a character's bytes: those from E3 to E9 lead the characters U+3000 to U+9FFF
    value = int(byte[1], 16)
    return 0xE3 <= value <= 0xE9 or value < 128 and not chr(value).isalnum()
  first = piece[:1]
  inside = first.isalnum() or unicodedata.category(first or " ").startswith("M")  # a letter's marks are no letters
  return not inside or bool(UNSPACED.match(piece))


class Bytes(Tokenizer):
  """One id per UTF-8 byte, after the specials: 'a' -> [102]. Needs no training."""

  def __init__(self):
    self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = range(5)
    self.vocab_size = 261
    self.token_bytes = np.concatenate([np.zeros(5, np.int32), np.ones(256, np.int32)])

  def find(self, piece):
    return None

  def encode(self, text):
    return [byte + 5 for byte in text.encode()]

  def encode_with_offsets(self, text):
    starts = np.repeat(np.arange(len(text), dtype=np.int32), [len(character.encode()) for character in text])
    return self.encode(text), np.stack([starts, starts + 1], axis=1)

  def decode(self, ids):
    return bytes(i - 5 for i in ids if 5 <= i < self.vocab_size).decode(errors="replace")

  def piece(self, i):
    if i < 5:
      return (PAD, UNK, BOS, EOS, MASK)[i]
    return chr(i - 5).replace(" ", SPACE_MARK) if 32 <= i - 5 < 127 else f"<0x{i - 5:02X}>"

  def fingerprint(self):
    return "bytes"

  def save(self, workdir):
    del workdir  # nothing to keep: the name says it all


class SentencePiece(Tokenizer):
  """A SentencePiece model file, with the specials that it names itself; without bos, eos begins a sequence too (T5).

  model: the SentencePieceProcessor.
  """

  def __init__(self, path: str):
    import sentencepiece

    try:
      self.model = sentencepiece.SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError) as error:
      raise ConfigError(f"config.tokenizer={path!r}: not a SentencePiece model") from error
    model = self.model
    self.vocab_size = model.vocab_size()
    self.pad_id, self.unk_id, self.eos_id = model.pad_id(), model.unk_id(), model.eos_id()
    self.bos_id = model.bos_id() if model.bos_id() >= 0 else self.eos_id
    self.mask_id = self.find(MASK)
    mark_ids = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]
    self._space_mark_ids = mark_ids if all(model.is_byte(i) for i in mark_ids) else []  # [] without byte fallback
    self._specials = frozenset(self.special_ids)
    self.token_bytes = np.array([self._num_bytes(i) for i in range(self.vocab_size)], np.int32)

  def find(self, piece):
    found = self.model.piece_to_id(piece)
    return found if found != self.unk_id else None

  def encode(self, text):
    if SPACE_MARK not in text or not self._space_mark_ids:
      return self.model.encode(text)
    first, *rest = (self.model.encode(part) for part in text.split(SPACE_MARK))
    return [*first, *(i for part in rest for i in (*self._space_mark_ids, *part))]

  def encode_with_offsets(self, text):
    ids, spans, start = [], [], 0
    for i, part in enumerate(text.split(SPACE_MARK) if self._space_mark_ids else [text]):
      if i:
        ids += self._space_mark_ids
        spans += [(start - 1, start)] * len(self._space_mark_ids)
      part_ids, part_spans = self._spans(part)
      ids += part_ids
      spans += [(start + a, start + b) for a, b in part_spans]
      start += len(part) + 1
    return ids, np.asarray(spans, np.int32).reshape(-1, 2)

  def _spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    pieces = list(self.model.encode(text, return_type="proto").pieces)
    ends = np.cumsum([0, *(len(character.encode()) for character in text)])  # [bytes] before each character
    begins, stops = (np.searchsorted(ends, [getattr(p, name) for p in pieces]).tolist() for name in ("begin", "end"))
    spans = list(zip(begins, stops, strict=True))
    for i in reversed(range(len(pieces) - 1)):  # of a character's bytes the last one has its span, the others have none
      if begins[i] == stops[i] == begins[i + 1] and self.model.is_byte(pieces[i].id):
        spans[i] = spans[i + 1]
    return [piece.id for piece in pieces], spans

  def decode(self, ids):
    return self.model.decode([int(i) for i in ids if int(i) not in self._specials and int(i) < self.vocab_size])

  def piece(self, i):
    return self.model.id_to_piece(i).replace("\n", "<0x0A>")

  def fingerprint(self):
    return hashlib.sha256(self.model.serialized_model_proto()).hexdigest()

  def save(self, workdir):
    target = Path(saved_path(workdir, self.fingerprint()))
    if not target.exists() or target.read_bytes() != self.model.serialized_model_proto():
      target.write_bytes(self.model.serialized_model_proto())

  def _num_bytes(self, i: int) -> int:
    if i in self._specials or self.model.is_control(i):
      return 0
    if self.model.is_byte(i):
      return 1
    piece = self.model.id_to_piece(i).replace(SPACE_MARK, " ")
    return len(piece.encode())


def load(path: str) -> Tokenizer:
  """'bytes', or the path of a SentencePiece model, of a Hugging Face folder, or of a tokenizer.json.

  Raises:
    ConfigError: there is nothing, or nothing that can be read.
  """
  if path == "bytes":
    return Bytes()
  if Path(path).is_dir() or path.endswith(".json"):
    from lm.data import hf_tokenizer

    return hf_tokenizer.load(path)
  if not Path(path).is_file():
    raise ConfigError(
      f"config.tokenizer={path!r}: no such file; train one with: python -m tools.train_tokenizer --output={path}"
    )
  return SentencePiece(path)


def saved_path(workdir: Path, fingerprint: str) -> str:
  """What `load` takes to read the tokenizer of that fingerprint that was saved in a workdir."""
  if fingerprint == "bytes":
    return "bytes"
  return str(workdir / ("tokenizer" if fingerprint.startswith(HF_PREFIX) else "tokenizer.model"))


def train(
  texts: Iterable[str], path: str, vocab_size: int | None = None, extra_symbols: Sequence[str] = (), kind: str = KINDS[0]
) -> None:
  """Trains a model with byte fallback and writes it to `path`; the same texts give the same file.

  Args:
    vocab_size: VOCAB_SIZE if not given; of kind "char" there is a piece for each character of the texts, as many as there are.
    extra_symbols: pieces that no text gives, for tasks that write them: "<extra_id_0>", "<fim_prefix>", "[R]".
    kind: one of KINDS.

  Raises:
    ConfigError: no text, or a vocabulary too small or too large for it; another kind, or a size that it does not take.
  """
  import sentencepiece

  if kind not in KINDS:
    raise ConfigError(f"kind={kind!r}: accepted are {', '.join(KINDS)}")
  if kind == "char" and vocab_size is not None:
    raise ConfigError(
      f"vocab_size={vocab_size}: has no effect on kind 'char', which has a piece for each character; leave it out"
    )
  size = VOCAB_SIZE if vocab_size is None else vocab_size
  of_kind: dict[str, Any] = {"vocab_size": size}
  if kind == "char":
    of_kind = {"vocab_size": sys.maxunicode, "use_all_vocab": True, "character_coverage": 1.0}
  elif size < (least := _MIN_VOCAB + len(extra_symbols)):
    raise ConfigError(f"vocab_size={size}: at least {least}, for bytes, newline and specials")
  if len({*extra_symbols, PAD, UNK, BOS, EOS, MASK, "\n", ""}) < len(extra_symbols) + 7:
    raise ConfigError(f"extra_symbols={','.join(extra_symbols)!r}: accepted are different names, not those of other specials")
  lines = _lines(texts)
  first = next(lines, None)
  if first is None:
    raise ConfigError("tokenizer: there is no text to train on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain([first], lines),
      model_writer=model,
      model_type=kind,
      **of_kind,
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      pad_id=0, unk_id=1, bos_id=2, eos_id=3,
      pad_piece=PAD, unk_piece=UNK, bos_piece=BOS, eos_piece=EOS,
      control_symbols=[MASK, *extra_symbols],
      user_defined_symbols=["\n"],
      max_sentence_length=_MAX_LINE,
      num_threads=2,
      minloglevel=2,
    )  # fmt: skip
  except RuntimeError as error:
    reason = str(error).splitlines()[-1].rpartition("] ")[2]  # behind the trainer's own file and condition
    raise ConfigError(f"{'tokenizer' if kind == 'char' else f'vocab_size={size}'}: {reason}") from error
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  Path(path).write_bytes(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
  width = _MAX_LINE // 4  # a character has four bytes at most
  for text in texts:
    for line in text.splitlines(keepends=True):
      for start in range(0, len(line), width):
        yield line[start : start + width]
