"""A model of this house as lm-evaluation-harness asks it. The package lm-eval is imported here and nowhere else."""

from collections.abc import Sequence
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table

from lm.config import ConfigError
from lm.engine import Engine
from lm.infer.generate import Sampler
from lm.tasks.readout import Continuation

__all__ = ["Asked", "TaskManager", "make_table", "simple_evaluate"]

SAMPLING = {"do_sample", "until", "max_gen_toks", "temperature", "top_k", "top_p"}  # what a task may say of generation


class Asked(LM):
  """Answers from an engine. max_new_tokens: of every answer that is generated, 0 as its task says."""

  def __init__(self, engine: Engine, batch_size: int, max_new_tokens: int = 0):
    super().__init__()
    self._engine, self._batch_size, self._max_new_tokens = engine, batch_size, max_new_tokens

  def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
    """(log p in nats, whether greedy decoding would write it) of each continuation."""
    return self._score([self._split(*request.args) for request in requests])

  def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
    """log p in nats of each text, read in pieces that each begin with the token before; its end does not count."""
    tok, length = self._engine.tokenizer, self._engine.longest
    pieces = [
      [make_disjoint_window(pair) for pair in get_rolling_token_windows(list(tok.encode(text)), tok.bos_id, length, 1)]
      for (text,) in (request.args for request in requests)
    ]
    found = iter(self._score([pair for pairs in pieces for pair in pairs]))
    return [sum(next(found)[0] for _ in pairs) for pairs in pieces]

  def generate_until(self, requests: list[Instance]) -> list[str]:
    """What is written behind each context up to one of its stops. A context that is too long loses its front."""
    answers = [""] * len(requests)
    by_settings: dict[tuple[Sampler, tuple[str, ...]], list[int]] = {}
    for i, request in enumerate(requests):
      by_settings.setdefault(self._settings(request.args[1]), []).append(i)
    for (sampler, until), numbers in by_settings.items():
      prompts = {i: self._prompt(requests[i].args[0], sampler) for i in numbers}
      for part in _batches(sorted(numbers, key=lambda i: len(prompts[i])), self._batch_size):
        written = self._engine.write([prompts[i] for i in part], self._engine.tokenizer.eos_id, sampler, seed=0)
        for i, ids in zip(part, written, strict=True):
          answers[i] = postprocess_generated_text(self._engine.tokenizer.decode(ids), list(until), None)
    return answers

  def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of both: those of the whole text, cut where the context's would end; its last spaces belong behind."""
    tok, bare = self._engine.tokenizer, context.rstrip()
    whole, first = tok.encode(context + continuation), tok.encode(bare)
    return [tok.bos_id, *first], list(whole[len(first) :])

  def _score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
    examples = [{"context": context, "continuation": continuation} for context, continuation in pairs]
    result = self._engine.read(Continuation(max_len=self._engine.longest), examples, self._batch_size)
    if result is None:
      return []
    arrays = result.arrays
    likeliest_N = arrays["num_likeliest"] == arrays["num_tokens"]
    return [(-float(loss), bool(likeliest)) for loss, likeliest in zip(arrays["loss"], likeliest_N, strict=True)]

  def _settings(self, told: dict[str, Any]) -> tuple[Sampler, tuple[str, ...]]:
    if unknown := told.keys() - SAMPLING:
      raise ConfigError(f"lm_eval: the task's generation_kwargs {', '.join(sorted(unknown))} have no meaning here")
    said = normalize_gen_kwargs(told)
    num_new = self._max_new_tokens or said["max_gen_toks"]
    if num_new >= self._engine.longest:
      raise ConfigError(
        f"lm_eval: a task writes {num_new} tokens, the run's rows have {self._engine.longest}; set max_new_tokens"
      )
    temperature = said["temperature"] if said["do_sample"] else 0.0
    sampler = Sampler(temperature, said.get("top_k", 0), said.get("top_p", 1.0), num_new, self._engine.prompt_is_prefix)
    return sampler, tuple(handle_stop_sequences(said.get("until"), None))

  def _prompt(self, context: str, sampler: Sampler) -> list[int]:
    room = self._engine.longest - sampler.max_new_tokens
    return [self._engine.tokenizer.bos_id, *self._engine.tokenizer.encode(context)][-room:]


def _batches(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
  return [numbers[first : first + size] for first in range(0, len(numbers), size)]
