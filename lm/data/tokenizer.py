"""Tokenizers behind one interface: SentencePiece models and plain bytes. Lossless: decode(encode(s)) == s for any text.

SentencePiece (Kudo & Richardson 2018) runs here without normalisation, dummy prefix or whitespace removal, with byte
fallback; its own space mark U+2581, which it would read as a space, is encoded as its three bytes.
"""

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lm.config import ConfigError

PAD, UNK, BOS, EOS, MASK = "<pad>", "<unk>", "<s>", "</s>", "[MASK]"
_SPACE_MARK = "\u2581"
_MAX_LINE = 1 << 16  # bytes; the trainer leaves out longer lines, so they are cut
_MIN_VOCAB = 262  # 256 bytes, the five specials, the newline


class Tokenizer:
  """What every tokenizer has. A sequence's first and last specials are bos and eos; encoders call them cls and sep."""

  vocab_size: int
  pad_id: int
  unk_id: int
  bos_id: int
  eos_id: int
  mask_id: int | None
  token_bytes: np.ndarray  # int32 [V]: UTF-8 bytes that each piece stands for, 0 for specials

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
    """Ids that text never gives."""
    ids = (self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id)
    return tuple(i for i in ids if i is not None and i >= 0)

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without specials."""
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

  def save(self, path: str) -> None:
    """Writes the model file, if there is one."""
    raise NotImplementedError


class Bytes(Tokenizer):
  """One id per UTF-8 byte, after the specials: 'a' -> [102]. Needs no training."""

  def __init__(self):
    self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = range(5)
    self.vocab_size = 261
    self.token_bytes = np.concatenate([np.zeros(5, np.int32), np.ones(256, np.int32)])

  def encode(self, text):
    return [byte + 5 for byte in text.encode()]

  def decode(self, ids):
    return bytes(i - 5 for i in ids if i >= 5).decode(errors="replace")

  def piece(self, i):
    if i < 5:
      return (PAD, UNK, BOS, EOS, MASK)[i]
    return chr(i - 5).replace(" ", _SPACE_MARK) if 32 <= i - 5 < 127 else f"<0x{i - 5:02X}>"

  def fingerprint(self):
    return "bytes"

  def save(self, path):
    del path  # nothing to keep: the name says it all


class SentencePiece(Tokenizer):
  """A SentencePiece model file."""

  def __init__(self, path: str):
    import sentencepiece

    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError) as error:
      raise ConfigError(f"config.tokenizer={path!r}: not a SentencePiece model") from error
    model = self._model
    self.vocab_size = model.vocab_size()
    self.pad_id, self.unk_id, self.bos_id, self.eos_id = model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id()
    mask = model.piece_to_id(MASK)
    self.mask_id = mask if mask != self.unk_id else None
    mark_ids = [model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
    self._space_mark_ids = mark_ids if all(model.is_byte(i) for i in mark_ids) else []  # [] without byte fallback
    self._specials = frozenset(self.special_ids)
    self.token_bytes = np.array([self._num_bytes(i) for i in range(self.vocab_size)], np.int32)

  def encode(self, text):
    if _SPACE_MARK not in text or not self._space_mark_ids:
      return self._model.encode(text)
    first, *rest = (self._model.encode(part) for part in text.split(_SPACE_MARK))
    return [*first, *(i for part in rest for i in (*self._space_mark_ids, *part))]

  def decode(self, ids):
    return self._model.decode([int(i) for i in ids if int(i) not in self._specials])

  def piece(self, i):
    return self._model.id_to_piece(i).replace("\n", "<0x0A>")

  def fingerprint(self):
    return hashlib.sha256(self._model.serialized_model_proto()).hexdigest()

  def save(self, path):
    target = Path(path)
    if not target.exists() or target.read_bytes() != self._model.serialized_model_proto():
      target.write_bytes(self._model.serialized_model_proto())

  def _num_bytes(self, i: int) -> int:
    if i in self._specials or self._model.is_control(i):
      return 0
    if self._model.is_byte(i):
      return 1
    piece = self._model.id_to_piece(i).replace(_SPACE_MARK, " ")
    return len(piece.encode())


def load(path: str) -> Tokenizer:
  """'bytes', or the path of a SentencePiece model."""
  if path == "bytes":
    return Bytes()
  if not Path(path).is_file():
    raise ConfigError(
      f"config.tokenizer={path!r}: no such file; train one with: python -m tools.train_tokenizer --output={path}"
    )
  return SentencePiece(path)


def train(texts: Iterable[str], path: str, vocab_size: int = 4096) -> None:
  """Trains a unigram model with byte fallback and writes it to `path`; the same texts give the same file.

  Raises:
    ConfigError: no text, or a vocabulary too small or too large for it.
  """
  import sentencepiece

  if vocab_size < _MIN_VOCAB:
    raise ConfigError(f"vocab_size={vocab_size}: at least {_MIN_VOCAB}, for bytes, newline and specials")
  lines = _lines(texts)
  first = next(lines, None)
  if first is None:
    raise ConfigError("tokenizer: there is no text to train on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain([first], lines),
      model_writer=model,
      model_type="unigram",
      vocab_size=vocab_size,
      byte_fallback=True,
      normalization_rule_name="identity",
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      pad_id=0, unk_id=1, bos_id=2, eos_id=3,
      pad_piece=PAD, unk_piece=UNK, bos_piece=BOS, eos_piece=EOS,
      control_symbols=[MASK],
      user_defined_symbols=["\n"],
      max_sentence_length=_MAX_LINE,
      num_threads=2,
      minloglevel=2,
    )  # fmt: skip
  except RuntimeError as error:
    reason = str(error).splitlines()[-1].rpartition("] ")[2]  # behind the trainer's own file and condition
    raise ConfigError(f"vocab_size={vocab_size}: {reason}") from error
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  Path(path).write_bytes(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
  width = _MAX_LINE // 4  # a character has four bytes at most
  for text in texts:
    for line in text.splitlines(keepends=True):
      for start in range(0, len(line), width):
        yield line[start : start + width]
