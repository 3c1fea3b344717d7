"""Texts as vectors, so that what belongs together is near: contrastive learning with the batch's other texts as negatives.

Henderson et al. 2017 and sentence-transformers' MultipleNegativesRankingLoss (pairs), SimCSE (Gao et al. 2021; pairs with hard
negatives, and single texts that dropout makes two of), supervised contrastive learning (Khosla et al. 2020; labels), and
Matryoshka embeddings (Kusupati et al. 2022).
"""

import dataclasses
import zlib

import numpy as np

from lm.config import ConfigError
from lm.shapes import Field
from lm.tasks.task import Task
from lm.tasks.text_rows import PLACE, POOLING, in_order, lay_out

PARTS = BEGIN, TEXT, END = range(3)  # of a text in its row: [CLS], its tokens, [SEP]
NOTHING = 0  # the group of a candidate that is not there


@dataclasses.dataclass(frozen=True)
class Encoder(Task):
  """One text to one vector: `prepare({"text": "ab"})` stores what is read as [cls a b sep]."""

  pooling: str = ""  # hidden state of a text: first, last, or the mean over all, specials too; unset is mean, last if causal
  normalize: bool = True  # to length 1, so that products are cosines

  packed = False
  head = ""  # reads none

  def __post_init__(self):
    if self.pooling not in ("", *POOLING):
      raise ValueError(f"task.pooling={self.pooling!r}: accepted are {', '.join(POOLING)}")

  @property
  def heads(self):
    return ()

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "place": PLACE}

  def prepare(self, example, tok):
    tokens, place = lay_out(tok, tok.encode(example["text"]))
    return [{"tokens": tokens, "place": place}]

  def corrupt(self, rows, noise, tok, width):
    (tokens_RT,) = in_order(rows, "tokens")
    return {"tokens": tokens_RT, "weights": (rows["segment_ids"][:, 0] > 0).astype(np.float32)}

  def predict(self, forward, batch):
    return {"embedding": self._embed(forward, batch, None, 1)[:, 0]}

  def describe_predictions(self, arrays, tok):
    return [{"embedding": vector} for vector in arrays["embedding"].tolist()]

  def _embed(self, forward, batch, rng, count):
    """[B, count, D] fp32, a vector for each of the first segments."""
    return self._scaled(forward, forward.pooled_segments(batch, rng, self.read_from(forward.causal), count))

  def read_from(self, causal: bool) -> str:
    """The pooling, also where it is unset."""
    return self.pooling or ("last" if causal else "mean")

  def _scaled(self, forward, text_BSD):
    return forward.unit(text_BSD) if self.normalize else text_BSD


@dataclasses.dataclass(frozen=True)
class Embed(Encoder):
  """Contrastive learning of embeddings. A row holds the texts of an example as segments, so `seq_len` is that of all together.

  `prepare({"text": "ab", "text_pair": "xyz"})` stores [cls a b sep] and [cls x y z sep] in the order in which a shorter row
  gives tokens up: it keeps the specials, and loses the longest text's end first. "text_negatives" are texts that do not answer.
  Without a second text one stands twice, apart by its dropout alone (SimCSE); with a label, all texts of the batch that have it
  are its positives beside.

  Candidates are the other texts of all rows of the global batch. Of one example no negative are those equal to its positive,
  the positives of an equal question, and texts of its label. An example without a second text, where others have one, has no
  weight. Streams of one task are contrasted each within itself.

  Sums per example: loss in nats (`lm.tasks.contrast`), with matryoshka_dims the mean over these and all dims, and accuracy,
  whether a positive is the nearest. Both depend on the batch: evaluation has batches of `batch_size` too, and `retrieval` is
  what compares runs.
  """

  temperature: float = 0.05  # products are divided by it; 0.05 for cosines, 1 for vectors that are not normalised
  symmetric: bool = False  # whether positives pick out their questions too
  matryoshka_dims: tuple[int, ...] = ()  # numbers of leading dims that are to be embeddings by themselves, such as 256,128,64
  num_hard_negatives: int = 0  # texts beside a pair that do not answer it; as many as the source says
  pair: bool = False  # whether examples have two texts; true where the source says so

  needs_whole_batch = True
  prepare_fields = ("pair", "num_hard_negatives")
  evaluators = (("retrieval", "validation"), ("retrieval", "test"))

  def __post_init__(self):
    super().__post_init__()
    if not self.temperature > 0:
      raise ValueError(f"task.temperature={self.temperature}: must be above 0")
    if any(dim < 1 for dim in self.matryoshka_dims) or len(set(self.matryoshka_dims)) < len(self.matryoshka_dims):
      raise ValueError(f"task.matryoshka_dims={self.matryoshka_dims}: accepted are different numbers from 1 on")
    if self.num_hard_negatives < 0:
      raise ValueError(f"task.num_hard_negatives={self.num_hard_negatives}: must be 0 or more")

  @property
  def num_segments(self) -> int:
    return 2 + self.num_hard_negatives

  @property
  def reader(self) -> Encoder:
    return Encoder(self.pooling, self.normalize)

  @property
  def fields(self) -> dict[str, Field]:
    place = Field(("T",), pad=len(PARTS) * self.num_segments)  # padding comes last
    groups = {name: Field(()) for name in self._group_names}
    return {"tokens": Field(("T",)), "place": place, "question": Field(())} | groups

  def check(self, tok, seq_len):
    if seq_len < (least := len(PARTS) * self.num_segments):
      raise ConfigError(f"config.seq_len={seq_len}: a row holds {self.num_segments} texts; accepted is {least} or more")

  def prepare(self, example, tok):
    texts = [example["text"], *self._candidates(example)]
    groups = [_number(text) for text in texts[1:]]
    if "label" in example:
      groups = [_number(f"label {example['label']}")]
    stored, order = [], []
    for number, text in enumerate(texts):
      ids = tok.encode(text)
      parts = [BEGIN, *[TEXT] * len(ids), END]
      stored.append(np.asarray([[tok.cls_id, *ids, tok.sep_id], [len(PARTS) * number + part for part in parts]], np.int32))
      order += [-1, *range(len(ids)), -1]
    tokens, place = np.concatenate(stored, axis=1)[:, np.argsort(order, kind="stable")]
    groups += [NOTHING] * (len(self._group_names) - len(groups))
    numbers = dict(zip(("question", *self._group_names), (_number(texts[0]), *groups), strict=True))
    return [{"tokens": tokens, "place": place} | {name: np.int32(value) for name, value in numbers.items()}]

  def corrupt(self, rows, noise, tok, width):
    tokens_RT, place_RT = in_order(rows, "tokens", "place")
    segment_RT = np.where(place_RT < len(PARTS) * self.num_segments, place_RT // len(PARTS) + 1, 0)
    positions_RT = np.zeros_like(place_RT)
    for number in range(1, self.num_segments + 1):
      mine_RT = segment_RT == number
      positions_RT += np.where(mine_RT, np.cumsum(mine_RT, axis=1) - 1, 0)
    counted_R = (rows["segment_ids"][:, 0] > 0) & (rows[self._group_names[0]] != NOTHING)
    return {
      "tokens": tokens_RT,
      "segment_ids": segment_RT.astype(np.int32),
      "positions": positions_RT.astype(np.int32),
      "question": rows["question"],
      "groups": np.stack([rows[name] for name in self._group_names], axis=1),
      "weights": counted_R.astype(np.float32),
    }

  def denominators(self, batch):
    return dict.fromkeys(("loss", "accuracy"), batch["weights"].sum())

  def loss(self, forward, batch, rng):
    text_BSD = forward.pooled_segments(batch, rng, self.read_from(forward.causal), self.num_segments)
    width = text_BSD.shape[-1]
    if wrong := next((dim for dim in self.matryoshka_dims if dim >= width), 0):
      raise ConfigError(f"task.matryoshka_dims={self.matryoshka_dims}: {wrong} must be below the model's {width} dims")
    of_dim = lambda dim: forward.contrast(self._scaled(forward, text_BSD[:, :, :dim]), batch, self.temperature, self.symmetric)
    losses, accuracies = zip(*map(of_dim, (width, *self.matryoshka_dims)), strict=True)
    found = {"loss": sum(losses) / len(losses), "accuracy": accuracies[0]}
    return {name: (value_B * batch["weights"]).sum() for name, value_B in found.items()}

  def predict(self, forward, batch):
    text_BSD = self._embed(forward, batch, None, self.num_segments)
    kept = {name: batch[name] for name in ("question", "groups", "weights")}
    return {"embedding": text_BSD[:, 0], "candidates": text_BSD[:, 1:]} | kept

  @property
  def _group_names(self) -> tuple[str, ...]:
    return tuple(f"group_{number}" for number in range(1 + self.num_hard_negatives))

  def _candidates(self, example) -> list[str]:
    """The positive of an example and what does not answer it; none where it has no positive."""
    if not self.pair:
      return [example["text"]]
    if "label" in example:
      raise ConfigError("a pair with a label; task 'embed' reads pairs that belong together, or labels of single texts")
    if "text_pair" not in example:
      return []
    negatives = list(example.get("text_negatives", ()))
    if len(negatives) > self.num_hard_negatives:
      raise ConfigError(f"has {len(negatives)} texts in text_negatives, task.num_hard_negatives={self.num_hard_negatives}")
    return [example["text_pair"], *negatives]


def _number(text: str) -> int:
  """A number from 1 to 2^31 - 1 that equal texts share; of two others one pair in 2^31 does."""
  return (zlib.crc32(text.encode()) >> 1) or 1
