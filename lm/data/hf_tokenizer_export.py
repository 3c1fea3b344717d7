"""Any tokenizer as the files that transformers' AutoTokenizer reads."""

from pathlib import Path
from typing import Any

from lm.config import ConfigError
from lm.data.hf_tokenizer import BYTE_CHARACTERS, KINDS, HuggingFace, sequence, write
from lm.data.tokenizer import SPACE_MARK, Bytes, SentencePiece, Tokenizer

_PROBE = "  Ａ ﬁ e\u0301 "  # what a dummy prefix, stripping or NFKC would change


def to_huggingface(tok: Tokenizer, directory: Path, model_max_length: int, causal: bool, token_types: bool = False) -> None:
  """Writes tokenizer.json and tokenizer_config.json, from which AutoTokenizer gives the ids that `tok` gives.

  A loaded Hugging Face tokenizer is written as it was, with our post-processor where its own adds other specials than our
  tasks. What is trained here, and bytes, get one too: it adds [cls a sep] and [cls a sep b sep]. Some texts have other ids
  there than here, and cannot have the same: the name of a special such as "<s>" in a text is the special. With a SentencePiece
  model also U+2581 is a space, "<0x41>" is that byte, and where two ways to cut a run score the same ("*****" as ** ** * or
  * ** **) rounding decides, of 32 bits here and of 64 there.

  Args:
    model_max_length: [tokens] that the model takes.
    causal: adds [bos a] and [bos a b] instead, which is how generation begins.
    token_types: whether the model reads token types: then those of b and its sep are 1, and they are among the inputs.

  Raises:
    ConfigError: a SentencePiece model that is neither unigram nor char, or that changes the text (normalisation, dummy prefix).
  """
  if isinstance(tok, HuggingFace):
    backend, names, config = tok.backend if causal else _laid_out(tok, token_types), tok.names, tok.config
  else:
    backend = _byte_backend(tok) if isinstance(tok, Bytes) else _unigram_backend(tok)
    ids = {kind: getattr(tok, f"{kind}_id") for kind in KINDS}
    names = {kind: backend.id_to_token(i) for kind, i in ids.items() if i is not None and i >= 0}
    config = {"clean_up_tokenization_spaces": False}
    backend.post_processor = _post_processor(tok, names, causal, token_types)
  inputs = ["input_ids", *["token_type_ids"] * token_types, "attention_mask"]
  write(backend, names, config | {"model_max_length": model_max_length, "model_input_names": inputs}, directory)


def _post_processor(tok: Tokenizer, names: dict[str, str], causal: bool, token_types: bool) -> Any:
  from tokenizers import processors

  if causal:
    bos = names["bos"]
    return processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tok.bos_id)])
  return sequence((names["cls"], tok.cls_id), (names["sep"], tok.sep_id), second=int(token_types))


def _laid_out(tok: HuggingFace, token_types: bool) -> Any:
  """A tokenizer that gives [cls a sep]: its own, or where that gives another row, as a decoder's does, one like it."""
  from tokenizers import Tokenizer

  if tok.backend.encode("a").ids == [tok.cls_id, *tok.encode("a"), tok.sep_id]:
    return tok.backend
  backend = Tokenizer.from_str(tok.backend.to_str())
  names = {"cls": str(backend.id_to_token(tok.cls_id)), "sep": str(backend.id_to_token(tok.sep_id))}
  backend.post_processor = _post_processor(tok, names, causal=False, token_types=token_types)
  return backend


def _byte_backend(tok: Bytes) -> Any:
  """BPE without merges over the bytes."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  specials = [tok.piece(i) for i in tok.special_ids]
  vocab = {piece: i for i, piece in enumerate([*specials, *(BYTE_CHARACTERS[byte] for byte in range(256))])}
  backend = Tokenizer(models.BPE(vocab, []))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in specials])
  return backend


def _unigram_backend(tok: Tokenizer) -> Any:
  """Of a model that `lm.data.tokenizer.train` made."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

  assert isinstance(tok, SentencePiece), type(tok)
  model = tok.model
  if model.normalize(_PROBE) != _PROBE.replace(" ", SPACE_MARK) or not (_is_unigram(model) or _is_of_characters(model)):
    raise ConfigError(
      "tokenizer: only a SentencePiece model of kind unigram or char that keeps the text as it is can be written for Hugging"
      " Face, such as tools.train_tokenizer makes; use the tokenizer.json that came with this one"
    )
  pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(tok.vocab_size)]
  byte_fallback = any(model.is_byte(i) for i in range(tok.vocab_size))
  backend = Tokenizer(models.Unigram(pieces, unk_id=tok.unk_id, byte_fallback=byte_fallback))
  backend.normalizer = normalizers.Replace(" ", SPACE_MARK)
  backend.decoder = decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
  for i, (piece, _) in enumerate(pieces):
    special = model.is_control(i) or model.is_unknown(i)
    if special or piece == "\n":  # the one piece that our training defines
      backend.add_tokens([AddedToken(piece, normalized=False, special=special)])
  return backend


def _is_unigram(model: Any) -> bool:
  try:
    model.nbest_encode("a", nbest_size=1)
  except RuntimeError:  # "not available for the current model"
    return False
  return True


def _is_of_characters(model: Any) -> bool:
  """Whether a text is cut in one way only, which unigram finds too."""
  named = lambda i: model.is_control(i) or model.is_unknown(i) or model.is_byte(i)
  return all(len(model.id_to_piece(i)) == 1 for i in range(model.vocab_size()) if not named(i))
