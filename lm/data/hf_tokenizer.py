"""Tokenizers of Hugging Face: WordPiece, byte-level BPE and unigram, read from a folder as transformers 5 reads it.

`encode(text)` gives what `tokenizer(text, add_special_tokens=False)` gives there: the name of a special that stands in the
text becomes that special, unless tokenizer_config.json says `split_special_tokens`.
"""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import ConfigError
from lm.data.tokenizer import HF_PREFIX, SPACE_MARK, SentencePiece, Tokenizer
from lm.files import read_json, write_json

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
GPT2 = {"unk": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}
ROBERTA = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
# What a special is usually called, where no file beside a tokenizer.json says it.
USUAL = {
  "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
  "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
  "unk": ("[UNK]", "<unk>"),
  "sep": ("[SEP]",),
  "pad": ("[PAD]", "<pad>"),
  "cls": ("[CLS]",),
  "mask": ("[MASK]", "<mask>"),
}
SENTENCEPIECE = ("tokenizer.model", "spiece.model")
SHIFTED = "sentencepiece.bpe.model"  # of XLM-R, CamemBERT, mBART, NLLB: fairseq's specials come before its pieces
CONFIG = "tokenizer_config.json"
_PROBE = "a \U00010380"  # a letter of all vocabularies and one (Ugaritic) of none
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [byte for byte in range(256) if byte not in _PLAIN]
# The character that byte-level BPE writes for each byte (GPT-2, Radford et al. 2019).
BYTE_CHARACTERS = {**{b: chr(b) for b in _PLAIN}, **{b: chr(256 + n) for n, b in enumerate(_REST)}}
_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


class HuggingFace(Tokenizer):
  """A `tokenizers.Tokenizer` with the names of its specials.

  A special that has no name is another one's id: cls is bos, sep is eos, eos is sep, bos is cls or else eos (GPT-2 begins a
  document with it), pad is eos. unk_id is -1 and mask_id None without one. special_ids are these and all added tokens
  that are special. token_bytes of WordPiece are those of the piece, which approximate the text's: spaces, case and accents
  are lost, and so is decode(encode(text)) == text.
  """

  def __init__(self, backend: Any, names: dict[str, str], config: dict[str, Any]):
    """names: token of each kind in KINDS that there is. config: what else stood in tokenizer_config.json."""
    self.backend, self.names, self.config = backend, names, config
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    vocab = backend.get_vocab(with_added_tokens=True)
    self.vocab_size = 1 + max(vocab.values())  # more than their number where ids are left out
    ids = {kind: vocab[name] for kind, name in names.items()}
    bos, eos = ids.get("bos"), ids.get("eos")
    last = next(i for i in (eos, ids.get("sep")) if i is not None)
    self.eos_id = last
    self.bos_id = next(i for i in (bos, ids.get("cls"), last) if i is not None)
    self._cls_id, self._sep_id = ids.get("cls", self.bos_id), ids.get("sep", last)
    self.pad_id, self.unk_id, self.mask_id = ids.get("pad", last), ids.get("unk", -1), ids.get("mask")
    self.chat_template = config.get("chat_template")
    added = backend.get_added_tokens_decoder()
    self._added = frozenset(added)
    self._specials = frozenset([*super().special_ids, *(i for i, token in added.items() if token.special)])
    parts = json.loads(backend.to_str())
    self._byte_level = '"ByteLevel"' in json.dumps([parts[name] for name in ("normalizer", "pre_tokenizer", "decoder")])
    # What WordPiece writes before a piece inside a word; all others stand at the word's start, signs too.
    self._inside = parts["model"]["continuing_subword_prefix"] if parts["model"]["type"] == "WordPiece" else ""
    self.token_bytes = np.zeros(self.vocab_size, np.int32)
    for piece, i in vocab.items():
      self.token_bytes[i] = self._num_bytes(piece, i)
    sides = backend.encode(_PROBE, _PROBE).sequence_ids  # [None 0 0 None None 1 1 None]
    self.pair_separators = max(1, sides.index(1) - sides.index(0) - sides.count(0)) if 1 in sides else 1

  @property
  def cls_id(self):
    return self._cls_id

  @property
  def sep_id(self):
    return self._sep_id

  @property
  def special_ids(self):
    return tuple(sorted(self._specials))

  @functools.cached_property
  def starts_word(self):
    if not self._inside:
      return super().starts_word
    return np.array([not self.piece(i).startswith(self._inside) for i in range(self.vocab_size)])

  def find(self, piece):
    return self.backend.token_to_id(piece)

  def encode(self, text):
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts):
    return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

  def encode_with_offsets(self, text):
    found = self.backend.encode(text, add_special_tokens=False)
    return found.ids, np.asarray(found.offsets, np.int32).reshape(-1, 2)

  def decode(self, ids):
    return self.backend.decode([int(i) for i in ids if int(i) not in self._specials], skip_special_tokens=False)

  def piece(self, i):
    piece = self.backend.id_to_token(i) or ""
    if self._byte_level and i not in self._added and _BYTES.keys() >= set(piece):
      data = bytes(_BYTES[character] for character in piece)
      try:
        piece = data.decode()
      except UnicodeDecodeError:  # a part of a character
        piece = "".join(f"<0x{byte:02X}>" for byte in data)
    return piece.replace(" ", SPACE_MARK).replace("\n", "<0x0A>")

  def fingerprint(self):
    parts = [self.backend.to_str(), self.names, self.backend.encode_special_tokens]
    return HF_PREFIX + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

  def save(self, workdir):
    write(self.backend, self.names, self.config, workdir / "tokenizer")

  def _num_bytes(self, piece: str, i: int) -> int:
    if i in self._specials:
      return 0
    if self._byte_level and i not in self._added:
      return len(piece)
    return 1 if _BYTE.fullmatch(piece) else len(piece.removeprefix("##").replace(SPACE_MARK, " ").encode())


class _Reads:
  """`with _Reads(path, what)`: what the library says of a bad file, as a ConfigError of one line."""

  def __init__(self, path: Path | str, what: str):
    self.path, self.what = path, what

  def __enter__(self):
    pass

  def __exit__(self, kind, error, trace):
    if kind is Exception:  # tokenizers raises the plain one, which no except clause tells from all others
      reason = str(error).splitlines()[0]
      raise ConfigError(f"config.tokenizer={str(self.path)!r}: not {self.what} ({reason})") from error


def write(backend: Any, names: dict[str, str], config: dict[str, Any], folder: Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json, which `load` and AutoTokenizer read alike."""
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / "tokenizer.json.tmp"
  temporary.write_text(backend.to_str(), encoding="utf-8")
  temporary.replace(folder / "tokenizer.json")
  named = {f"{kind}_token": names[kind] for kind in KINDS if kind in names}
  write_json(folder / CONFIG, {**config, **named, "tokenizer_class": "PreTrainedTokenizerFast"})


def load(path: str) -> Tokenizer:
  """The tokenizer of a Hugging Face folder, or of a tokenizer.json with what stands beside it.

  It is made from the first of these: tokenizer.json; vocab.txt (BERT, with `do_lower_case`, `strip_accents` and
  `tokenize_chinese_chars` of tokenizer_config.json); vocab.json and merges.txt (GPT-2, or RoBERTa if it knows <mask>);
  a SentencePiece file, which then is all that is read. The names of specials are those of tokenizer_config.json and
  special_tokens_map.json, then the family's, then what the ids in config.json and the usual names find.

  Raises:
    ConfigError: none of the files is there, one cannot be read, or no token ends a sequence.
  """
  if not Path(path).exists():
    raise ConfigError(f"config.tokenizer={path!r}: no such file")
  folder, whole = (Path(path), Path(path) / "tokenizer.json") if Path(path).is_dir() else (Path(path).parent, Path(path))
  config = _config(folder)
  if whole.is_file():
    backend, family = _from_json(whole), {}
  elif (folder / "vocab.txt").is_file():
    backend, family = _word_piece(folder / "vocab.txt", config), BERT
  elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
    backend, family = _byte_level(folder, config)
  else:
    return _sentence_piece(folder)
  found = {kind: config.get(f"{kind}_token", family.get(kind)) for kind in KINDS}
  tokens = {kind: token for kind, token in found.items() if token is not None}
  _add_tokens(backend, folder, config, tokens)
  names = {kind: _content(token) for kind, token in tokens.items()}
  names = _unnamed(backend, _json(folder / "config.json")) | names
  if "eos" not in names and "sep" not in names:
    raise ConfigError(f"config.tokenizer={path!r}: no token ends a sequence; {CONFIG} must name an eos_token or sep_token")
  _set_post_processor(backend, family, names, config)
  kept = {key: value for key, value in config.items() if key not in ("added_tokens_decoder", "auto_map")}
  with _Reads(path, "a tokenizer of any text"):
    return HuggingFace(backend, names, kept)


def _json(path: Path) -> dict[str, Any]:
  try:
    found = read_json(path)
  except ValueError as error:
    raise ConfigError(f"config.tokenizer: {path} is not JSON ({error})") from error
  if not isinstance(found, dict):
    raise ConfigError(f"config.tokenizer: {path} does not hold a JSON object")
  return found


def _config(folder: Path) -> dict[str, Any]:
  """tokenizer_config.json with the specials of special_tokens_map.json and the default one of several chat templates."""
  config, file = _json(folder / CONFIG), folder / "chat_template.jinja"
  if "added_tokens_decoder" not in config:  # with it transformers does not read the map
    config |= _json(folder / "special_tokens_map.json")
  template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
  if isinstance(template, list):  # [{"name": ..., "template": ...}]
    template = {entry["name"]: entry["template"] for entry in template}
  if isinstance(template, dict):
    template = template.get("default")
  return {key: value for key, value in config.items() if key != "chat_template"} | (
    {"chat_template": template} if template else {}
  )


def _from_json(path: Path) -> Any:
  import tokenizers

  with _Reads(path, "a tokenizer.json"):
    return tokenizers.Tokenizer.from_file(str(path))


def _word_piece(path: Path, config: dict[str, Any]) -> Any:
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  with _Reads(path, "a WordPiece vocabulary"):
    vocab = models.WordPiece.read_file(str(path))
  backend = Tokenizer(models.WordPiece(vocab, unk_token=_content(config.get("unk_token") or BERT["unk"])))
  backend.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    strip_accents=config.get("strip_accents"),
    lowercase=config.get("do_lower_case", True),
  )
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece(prefix="##")
  return backend


def _byte_level(folder: Path, config: dict[str, Any]) -> tuple[Any, dict[str, str]]:
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  with _Reads(folder, "a vocab.json and merges.txt of byte-level BPE"):
    vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    backend = Tokenizer(models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
  backend.decoder = decoders.ByteLevel()
  kind = config.get("tokenizer_class") or ""
  if kind and not re.match("(GPT2|Roberta)Tokenizer", kind):  # others part text and change characters in other ways
    raise ConfigError(f"config.tokenizer={str(folder)!r}: {kind} is read from tokenizer.json, which is not there")
  roberta = "<mask>" in vocab or _json(folder / "config.json").get("model_type") == "roberta"
  return backend, ROBERTA if roberta else GPT2


def _sentence_piece(folder: Path) -> SentencePiece:
  for name in SENTENCEPIECE:
    if (folder / name).is_file():
      return SentencePiece(str(folder / name))
  if (folder / SHIFTED).is_file():
    raise ConfigError(
      f"config.tokenizer={str(folder)!r}: the ids in {SHIFTED} are not those of its models; get their tokenizer.json"
    )
  raise ConfigError(
    f"config.tokenizer={str(folder)!r}: no tokenizer there; looked for tokenizer.json, vocab.txt, vocab.json with merges.txt,"
    f" {', '.join(SENTENCEPIECE)}"
  )


def _content(token: Any) -> str:
  """Of a token that is written as a string or as {"content": ...}."""
  content = token.get("content") if isinstance(token, dict) else token
  if not isinstance(content, str):
    raise ConfigError(f"config.tokenizer: special token {token!r} in a file; accepted are a string and {{'content': string}}")
  return content


def _add_tokens(backend: Any, folder: Path, config: dict[str, Any], tokens: dict[str, Any]) -> None:
  """Adds what the files beside the vocabulary name, in the order of transformers, so that it gets the same ids."""
  named = {_content(token) for token in tokens.values()}
  by_id = lambda listed: [token for _, token in sorted(listed.items(), key=lambda item: int(item[0]))]
  backend.add_tokens([_added_token(token) for token in by_id(config.get("added_tokens_decoder", {}))])
  older = by_id({i: content for content, i in _json(folder / "added_tokens.json").items()})
  extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
  specials = [*tokens.values(), *(extra.values() if isinstance(extra, dict) else extra)]
  wanted = [_added_token(token, special=token in named, normalized=token not in named) for token in older]
  for token in [*wanted, *(_added_token(token, special=True) for token in specials)]:
    if token.content not in {added.content for added in backend.get_added_tokens_decoder().values()}:
      backend.add_tokens([token])


def _added_token(token: Any, **flags: bool) -> Any:
  from tokenizers import AddedToken

  written = {} if isinstance(token, str) else {key: token[key] for key in token if key not in ("__type", "content", "id")}
  return AddedToken(_content(token), **(written | flags))


def _unnamed(backend: Any, model_config: dict[str, Any]) -> dict[str, str]:
  """Specials that no file names: by the ids in a model's config.json, an id outside the vocabulary being none, or usual."""
  vocab = backend.get_vocab(with_added_tokens=True)
  specials = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
  found = {kind: next((name for name in USUAL[kind] if name in specials), "") for kind in KINDS}
  found["unk"] = found["unk"] or getattr(backend.model, "unk_token", None) or ""
  for kind in KINDS:
    ids = model_config.get(f"{kind}_token_id")
    i = ids[0] if isinstance(ids, list) and ids else ids
    if isinstance(i, int) and i >= 0 and backend.id_to_token(i) is not None:
      found[kind] = backend.id_to_token(i)
  return {kind: name for kind, name in found.items() if name in vocab}


def _set_post_processor(backend: Any, family: dict[str, str], names: dict[str, str], config: dict[str, Any]) -> None:
  """The sequence of a family whose files do not say it: it decides pairs, and whether offsets leave out spaces."""
  from tokenizers import processors

  special = lambda kind: (names[kind], backend.token_to_id(names[kind]))
  if family is BERT:
    backend.post_processor = sequence(special("cls"), special("sep"), second=1)
  if family is ROBERTA:
    trim, prefix = config.get("trim_offsets", True), config.get("add_prefix_space", False)
    backend.post_processor = processors.RobertaProcessing(special("sep"), special("cls"), trim, prefix)


def sequence(cls: tuple[str, int], sep: tuple[str, int], second: int) -> Any:
  """The post-processor of [cls a sep] and [cls a sep b sep]. second: token type of what comes after the first sep."""
  from tokenizers import processors

  single = f"{cls[0]}:0 $A:0 {sep[0]}:0"
  return processors.TemplateProcessing(
    single=single, pair=f"{single} $B:{second} {sep[0]}:{second}", special_tokens=list(dict.fromkeys([cls, sep]))
  )
