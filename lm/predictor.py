"""A trained model in use: `load(workdir)` gives a Predictor, plain Python in and out. This is what `lm.load` is.

Texts go the way of training: the task prepares them, a store in memory, rows of few lengths, one compiled step per length.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import adapters, config, device, record, saved, sharding, tree
from lm.adapters import Adapter, Base
from lm.checkpoint import choose
from lm.config import ConfigError
from lm.data import dialogue, template
from lm.data.tokenizer import Tokenizer
from lm.engine import Engine
from lm.infer.generate import Sampler
from lm.interop import sentence
from lm.models.model import Model
from lm.tasks.dpo import Dpo
from lm.tasks.embed import Encoder
from lm.tasks.readout import Score, TokenMean
from lm.tasks.sft import Sft
from lm.tasks.task import Task

Example = str | tuple[str, str] | Mapping[str, Any]  # a text, a pair, or a row with "text" and perhaps "text_pair"


def load(
  path: str | Path,
  checkpoint: str | int = "last",
  devices: Sequence[jax.Device] | None = None,
  mesh: config.Mesh | None = None,
  dtype: str = "float32",
) -> "Predictor":
  """The model of a run's workdir, or of a Hugging Face directory or id, ready for use. Nothing of its data is needed.

  Args:
    checkpoint: of a workdir: "last", "best" or the number of a step.
    devices: over which rows are split; all of the process's if not given.
    mesh: how they share the work, `config.Mesh()` if not given; config.Mesh(fsdp=4) for a model that one does not hold.
    dtype: that it computes in: float32, bfloat16, float16, or auto, as a run there would.

  Raises:
    ConfigError: neither of both, no such checkpoint, one of a later format, or files that do not fit each other.
  """
  if dtype not in config.DTYPES:
    raise ConfigError(f"dtype={dtype!r}: accepted are {', '.join(config.DTYPES)}")
  folder = saved.find(str(path), "path")
  over = sharding.make_mesh(mesh or config.Mesh(), list(devices or jax.devices()))
  step, max_len = 0, sentence.read_max_len(folder)
  data: dict[str, dict[str, Any]] = {}
  if saved.is_workdir(folder):
    cfg = record.load_config(folder)
    step = choose(folder / "checkpoints", checkpoint)
    data, max_len = {name: dict(stream.data.options) for name, stream in cfg.all_streams.items()}, cfg.seq_len
  model, params = saved.load_model(folder, step, over)
  model = dataclasses.replace(model, dtype=device.compute_dtype(dtype, over.devices.flat[0]))
  params = jax.device_put(params, tree.unflatten(sharding.by_name(model.abstract, over)))
  tasks, max_len = saved.load_tasks(folder, step), min(max_len or model.max_len, model.max_len)
  return Predictor(
    model=model,
    params=params,
    tokenizer=saved.load_tokenizer(folder),
    tasks=tasks,
    data=data,
    mesh=over,
    step=step,
    max_len=max_len,
    base=Base(folder, str(path), model, tree.flatten(params), tasks, max_len),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
  """A model with its tokenizer. tasks: those of its run by name. data: the options of their sources. step: of the checkpoint.

  base: what was loaded. adapters: those of it by name, of which `use` chooses one.
  Methods take any number of texts and keep their order. `batch_size` rows are computed at a time (rounded up to a multiple
  of the devices), the last batch is filled up; it changes time and memory, not what is found beyond rounding.
  """

  model: Model
  params: dict[str, Any]
  tokenizer: Tokenizer
  tasks: Mapping[str, Task]
  data: Mapping[str, Mapping[str, Any]]
  mesh: jax.sharding.Mesh
  step: int
  max_len: int  # tokens of the longest row, specials included: the model has learned from no longer one
  base: Base
  adapters: Mapping[str, Adapter] = dataclasses.field(default_factory=dict)

  def add_adapter(self, name: str, path: str | Path, checkpoint: str | int = "last") -> "Predictor":
    """The same with one more adapter: that of a run that started from this base, or of a directory of peft.

    Raises:
      ConfigError: no adapter, or one of another base.
    """
    return self._add(name, adapters.load(str(path), self.base, checkpoint))

  def merge_adapters(self, shares: Mapping[str, float], name: str, how: str = "linear", rank: int = 0) -> "Predictor":
    """The same with one more adapter, the weighted sum of LoRA adapters: {"a": 0.7, "b": 0.3}; see `lm.adapters.merge`."""
    return self._add(name, adapters.merge(self.adapters, shares, self.base, how, rank))

  def use(self, name: str = "") -> "Predictor":
    """The base with the adapter of that name, "" without any. Adapters of equal methods share what is compiled."""
    base, chosen = self.base, adapters.find(self.adapters, name) if name else None
    model = chosen.around(base.model) if chosen else base.model
    flat = {**base.params, **(chosen.params if chosen else {})}
    return dataclasses.replace(
      self,
      model=model,
      params=tree.unflatten({name: flat[name] for name in tree.flatten(model.abstract)}),
      tasks=chosen.tasks if chosen else base.tasks,
      max_len=(chosen and chosen.max_len) or min(base.max_len, model.max_len),
    )

  def save_adapter(self, name: str, directory: str | Path) -> None:
    """Writes an adapter as peft loads it; errors as `pretrained.write_adapter`."""
    adapters.save(adapters.find(self.adapters, name), self.base, Path(directory))

  def _add(self, name: str, adapter: Adapter) -> "Predictor":
    place = sharding.by_name(adapter.around(self.base.model).abstract, self.mesh)
    params = {key: jax.device_put(array, place[key]) for key, array in adapter.params.items()}
    return dataclasses.replace(self, adapters={**self.adapters, name: dataclasses.replace(adapter, params=params)})

  def predict(self, texts: Iterable[Example], batch_size: int = 32, task: str = "") -> list[dict[str, Any]]:
    """What the run's task says of each text, e.g. [{"label": "positive", "scores": {"negative": 0.1, "positive": 0.9}}].

    Args:
      texts: texts, (text, text) pairs, or rows {"text": ..., "text_pair": ...}; of a task that chooses, rows {"context": ...,
        "question": ..., "choices": [...]}. A label among them is not read.
      task: which one, where the run has several that predict.

    A text longer than the run's longest row is cut, which a warning counts.
    """
    predictions, num_cut = self.predict_counted(texts, batch_size, task)
    _warn_cut(num_cut, len(predictions), self.engine.longest)
    return predictions

  def predict_counted(self, texts: Iterable[Example], batch_size: int = 32, task: str = "") -> tuple[list[dict[str, Any]], int]:
    """`predict`, and how many texts were cut instead of a warning."""
    chosen = self.tasks[self.find_task(task)].reader
    rows = _rows(texts, getattr(chosen, "pair", False)) if chosen.reads_texts else _examples(texts)
    result = self.engine.read(chosen, rows, batch_size)
    if result is None:
      return [], 0
    described = chosen.describe_predictions(chosen.join(result.arrays, result.owner_N), self.tokenizer)
    return [chosen.quote(found, row) for found, row in zip(described, rows, strict=True)], result.num_cut

  def find_task(self, task: str = "") -> str:
    """The name of the task that predicts, or that one if it does.

    Raises:
      ConfigError: there is none, it does not predict, or there are several.
    """
    names = [name for name, value in self.tasks.items() if value.predicts]
    if not names:
      raise ConfigError(f"predict: none of the run's tasks predicts anything about a text; it has {', '.join(self.tasks)}")
    if task not in names and (task or len(names) > 1):
      raise ConfigError(f"task={task!r}: accepted are {', '.join(names)}, the run's tasks that predict")
    return task or names[0]

  def generate(
    self,
    prompts: Sequence[str],
    max_new_tokens: int = Sampler.max_new_tokens,
    temperature: float = Sampler.temperature,
    top_k: int = Sampler.top_k,
    top_p: float = Sampler.top_p,
    seed: int = 0,
  ) -> list[str]:
    """What an autoregressive model writes after each prompt, without the prompt; "" starts a new document.

    It sees the prompt in both directions where all tasks of its head train that: prefix_lm, span_corruption, ul2.

    Args:
      temperature: 0 always takes the likeliest token. top_k: 0 keeps all. top_p: 1 keeps all.
      seed: decides the samples, together with the number of prompts.
    """
    self._check_autoregressive("generate")
    sampler = Sampler(temperature, top_k, top_p, max_new_tokens, self.engine.prompt_is_prefix)
    tok, rows = self.tokenizer, _rows(prompts)
    if not rows:
      return []
    tokens = [[tok.bos_id, *tok.encode(row["text"])] for row in rows]
    written = self.engine.write(tokens, tok.eos_id, sampler, seed)
    return [tok.decode(ids) for ids in written]

  def chat(
    self,
    conversations: Sequence[str | Sequence[Mapping[str, str]]],
    max_new_tokens: int = Sampler.max_new_tokens,
    temperature: float = Sampler.temperature,
    top_k: int = Sampler.top_k,
    top_p: float = Sampler.top_p,
    seed: int = 0,
  ) -> list[str]:
    """The model's answer to each conversation: a text, which a user says, or messages [{"role", "content"}, ...].

    They are framed by the template that the run was trained with (sft, dpo), else by the tokenizer's own. An answer ends
    where the template ends a turn; if that is no single token of the vocabulary, all `max_new_tokens` are drawn and cut there.
    Other arguments as `generate` takes them.

    Raises:
      ConfigError: there is no template; a conversation that does not end with the user.
    """
    self._check_autoregressive("chat")
    if not self.template:
      raise ConfigError("chat: the run was not trained on conversations (sft, dpo), and its tokenizer has no chat template")
    if isinstance(conversations, str):
      raise ConfigError(f"conversations: expected a list of texts or of messages, got {conversations!r}")
    tok, end = self.tokenizer, template.end_of_turn(self.template, self.tokenizer)
    asked = [dialogue.read_prompt(conversation) for conversation in conversations]
    if not asked:
      return []
    tokens = [template.tokenize(messages, tok, self.template, prompt=True)[0].tolist() for messages in asked]
    sampler = Sampler(temperature, top_k, top_p, max_new_tokens)
    written = self.engine.write(tokens, end if isinstance(end, int) else tok.eos_id, sampler, seed)
    answers = [tok.decode(ids) for ids in written]
    return [answer.partition(end)[0] for answer in answers] if isinstance(end, str) and end else answers

  @property
  def template(self) -> str:
    """The template of conversations: that of the task that was trained on them, else the tokenizer's own; "" without both."""
    trained = [task.template for task in self.tasks.values() if isinstance(task, Sft | Dpo)]
    if not trained and not self.tokenizer.chat_template:
      return ""
    return template.choose(trained[0] if trained else template.OWN, self.tokenizer)

  def score(self, texts: Sequence[str], batch_size: int = 32) -> list[dict[str, float]]:
    """How likely an autoregressive model finds each text, its end included.

    Returns [{"log_likelihood": nats, "num_tokens": predicted ones, the end too, "bits_per_byte": the end counts as a byte}].
    A text longer than the run's longest row is read in pieces; none sees those before it, and no token is left out. Of an
    empty text there is its end alone: one token, one byte.
    """
    self._check_autoregressive("score")
    rows = _rows(texts)
    result = self.engine.read(Score(max_len=self.engine.longest), rows, batch_size)
    if result is None:
      return []
    nats = np.bincount(result.owner_N, result.arrays["loss"], len(rows))
    num_tokens = np.bincount(result.owner_N, result.arrays["num_tokens"], len(rows))
    num_bytes = [len(row["text"].encode()) + 1 for row in rows]
    return [
      {"log_likelihood": -float(loss), "num_tokens": int(count), "bits_per_byte": float(loss) / math.log(2) / size}
      for loss, count, size in zip(nats, num_tokens, num_bytes, strict=True)
    ]

  def embed(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """[N, D] fp32, a vector for each text: as task `embed` trained them, or the directory of sentence-transformers says.

    Of other models the mean of the last hidden states over a text's tokens, specials left out; zeros for an empty text.
    A text longer than the run's longest row is cut, which a warning counts.
    """
    trained = [task.reader for task in self.tasks.values() if isinstance(task, Encoder)]
    result = self.engine.read(trained[0] if trained else TokenMean(), _rows(texts), batch_size)
    if result is None:
      return np.zeros((0, self.model.cfg.model_dim), np.float32)
    _warn_cut(result.num_cut, len(result.owner_N), self.engine.longest)
    return result.arrays["embedding"]

  def fingerprint(self) -> str:
    """Hash of parameters and tokenizer: equal where predictions are."""
    return f"{tree.sha256(self.params)}/{self.tokenizer.fingerprint()}"

  @property
  def engine(self) -> Engine:
    """What it computes with."""
    return Engine(self.model, self.params, self.tokenizer, self.mesh, self.max_len, self.tasks)

  def _check_autoregressive(self, what: str) -> None:
    if "lm" not in dict(self.model.heads):
      raise ConfigError(f"{what}: needs an autoregressive run (task causal); this one has {', '.join(self.tasks)}")


def _rows(texts: Iterable[Example], pair: bool = False) -> list[Mapping[str, Any]]:
  """Rows as sources give them, without label. pair: whether they must have a second text."""
  if isinstance(texts, str | Mapping):
    raise ConfigError(f"texts: expected a list of texts, got {texts!r}")
  wanted = ("text", "text_pair") if pair else ("text",)
  rows = []
  for i, text in enumerate(texts):
    row = {"text": text} if isinstance(text, str) else text
    if isinstance(text, tuple | list) and len(text) == 2:
      row = {"text": text[0], "text_pair": text[1]}
    if not isinstance(row, Mapping):
      raise ConfigError(f"texts[{i}]={text!r}: expected a text, a pair of texts or a row with {' and '.join(wanted)}")
    if not pair and "text_pair" in row:
      raise ConfigError(f"texts[{i}]: is a pair of texts, expected one text")
    if not all(isinstance(row.get(name), str) for name in wanted):
      raise ConfigError(
        f"texts[{i}]: expected texts in {' and '.join(wanted)}; the row has {', '.join(map(str, row)) or 'none'}"
      )
    rows.append({name: value for name, value in row.items() if name not in ("label", "tags", "answers")})
  return rows


def _examples(rows: Iterable[Any]) -> list[Mapping[str, Any]]:
  """Rows of any columns, without label."""
  found = [rows] if isinstance(rows, str) else list(rows)
  if not all(isinstance(row, Mapping) for row in found):
    raise ConfigError(f"predict: the run's task reads rows with columns, expected a list of those, got {str(rows)[:200]}")
  return [{name: value for name, value in row.items() if name != "label"} for row in found]


def _warn_cut(num_cut: int, total: int, max_len: int) -> None:
  if num_cut:
    warnings.warn(f"{num_cut} of {total} texts are longer than the run's {max_len} tokens and were cut", stacklevel=3)
