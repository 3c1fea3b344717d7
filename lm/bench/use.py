"""A model in use by the stopwatch: vectors of texts, and what it writes; beside it transformers with the same weights."""

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from lm import device, tree
from lm.bench import hf, peer
from lm.bench.turns import Other, Turn, figures, ratios, take_turns, timed
from lm.config import ConfigError
from lm.engine import Engine
from lm.infer.generate import Sampler
from lm.pretrained import Pretrained, save_pretrained
from lm.run import Run
from lm.tasks.readout import TokenMean
from lm.train import peak_memory

NEVER = -1  # no token: what is written ends by its number of tokens


def measure_encoding(run: Run, rounds: int, num_texts: int, batch_size: int, with_peer: bool) -> dict[str, Any]:
  """Vectors, the mean over a text's tokens, of `num_texts` texts of the training split a round, in rows of few lengths.

  Returns:
    `turns.figures` of texts and of bytes of text per second; with a peer (AutoModel over batches of texts of similar length)
    the like as `peer`, and `turns.ratios`.

  Raises:
    ConfigError: a source without texts; as `save_pretrained`.
  """
  source = run.source(next(iter(run.config.all_streams)), "train")
  every = (source[i].get("text") for i in range(len(source)))
  found = list(itertools.islice((text for text in every if isinstance(text, str) and text), num_texts * rounds))
  if not found:
    raise ConfigError("encode: the rows of the data have no text")
  texts = [[found[(r * num_texts + i) % len(found)] for i in range(num_texts)] for r in range(rounds)]
  engine = _engine(run)
  read = lambda part: engine.read(TokenMean(), [{"text": text} for text in part], batch_size)
  # All of them before the first round, so that every length of row is compiled.
  ours = lambda number: timed(lambda: [read(part) for part in (texts if number < 0 else [texts[number]])])
  amounts = {"texts": [num_texts] * rounds, "bytes": [sum(len(text.encode()) for text in part) for part in texts]}
  asked = lambda number: (hf.encode_timed, texts[number], batch_size, engine.max_len)
  with _peer(run, engine, "AutoModel") if with_peer else contextlib.nullcontext() as other:
    return _race(ours, asked, amounts, other)


def measure_generation(run: Run, rounds: int, num_tokens: int, batch_size: int, with_peer: bool) -> dict[str, Any]:
  """`num_tokens` new ones, the likeliest, behind each of `batch_size` prompts, which are the first half of training rows.

  Returns:
    `turns.figures` of new tokens per second, prompts read included; with a peer (`generate` with its cache) the like as
    `peer`, and `turns.ratios`.

  Raises:
    ConfigError: a model that does not generate; more tokens than it takes; as `save_pretrained`.
  """
  engine = _engine(run)
  if "lm" not in dict(engine.model.heads):
    raise ConfigError(f"generate: needs an autoregressive task, as causal; the run has {', '.join(run.tasks)}")
  width = max(1, run.config.seq_len // 2)
  if width + num_tokens > engine.model.max_len:
    raise ConfigError(f"--tokens={num_tokens}: behind prompts of {width}, and the model takes {engine.model.max_len} in all")
  rows = [run.loader.batch(r)["inputs"]["tokens"] for r in range(rounds)]
  prompts = [np.resize(tokens_BT[:, :width], (batch_size, width)).astype(np.int64) for tokens_BT in rows]
  sampler = Sampler(temperature=0.0, max_new_tokens=num_tokens)
  ours = lambda number: timed(lambda: engine.write(prompts[number].tolist(), NEVER, sampler, 0))
  asked = lambda number: (hf.write_timed, prompts[number], num_tokens)
  with _peer(run, engine, "AutoModelForCausalLM") if with_peer else contextlib.nullcontext() as other:
    return _race(ours, asked, {"tokens": [batch_size * num_tokens] * rounds}, other)


def _engine(run: Run) -> Engine:
  """The run's model with the weights that it starts with, a method's own left out."""
  state, model = run.init_state(), run.program.spec.model
  if run.program.spec.peft.num_virtual_tokens:
    raise ConfigError("config.peft: positions in front of a text are for training; leave it 'full' to measure the model")
  if model.quantizer:
    raise ConfigError("config.quantizer: packs weights for training; leave it unset to measure the model")
  params = tree.flatten(tree.merge(state.params, state.frozen))
  kept = tree.unflatten({name: params[name] for name in tree.flatten(model.abstract)})
  return Engine(model, kept, run.tokenizer, run.mesh, min(run.config.seq_len, model.max_len), run.tasks)


@contextlib.contextmanager
def _peer(run: Run, engine: Engine, model_class: str) -> Generator[Other]:
  """A process that has the model, for the functions of `hf`."""
  peer.check(run)
  with tempfile.TemporaryDirectory() as folder, Other() as other:
    if not (directory := peer.find_directory(run)):
      params = jax.tree.map(np.asarray, engine.params)
      save_pretrained(Pretrained(engine.model, params, run.tokenizer, tasks=run.tasks), folder)
    other.ask(hf.load, directory or folder, model_class, device.num_cores())
    yield other


def _race(ours: Turn, asked: Callable[[int], tuple], amounts: dict[str, list[int]], other: Other | None) -> dict[str, Any]:
  """Figures of both sides. asked: what the other process is to call, by the number of the round."""
  rounds = len(next(iter(amounts.values())))
  device.reset_peak_memory()
  seconds = take_turns([ours] if other is None else [ours, lambda number: other.ask(*asked(number))], rounds)
  found = figures(seconds[0], **amounts) | {"peak_memory_bytes": peak_memory(), "cores": device.num_cores()}
  if other is None:
    return found
  their = figures(seconds[1], **amounts) | {"peak_memory_bytes": other.ask(device.peak_memory)}
  return found | {"peer": their, **ratios(*seconds)}
