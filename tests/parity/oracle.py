"""What transformers computes: makes the models of `families.py`, and their outputs as numpy arrays."""

import zlib
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.parity import agreement
from tests.parity.families import NAMES, PAD, STDDEV, VARIANTS, VOCAB

CLEAR = 5e-4  # margin of a choice that rounding does not decide
transformers.utils.logging.disable_progress_bar()
AUTO = {
  "mlm": transformers.AutoModelForMaskedLM,
  "causal": transformers.AutoModelForCausalLM,
  "classifier": transformers.AutoModelForSequenceClassification,
  "tagger": transformers.AutoModelForTokenClassification,
  "span": transformers.AutoModelForQuestionAnswering,
  "encoder": transformers.AutoModel,
}


def make(name: str, directory: Path, **changes) -> None:
  """Writes a variant with random weights, the same ones every time, as a Hugging Face directory."""
  variant = VARIANTS[name]
  architecture = getattr(transformers, variant.architecture)
  ids = dict(pad_token_id=PAD, bos_token_id=2, eos_token_id=3)
  names = NAMES.get(variant.kind, {})
  labels = dict(id2label=names, label2id={label: i for i, label in names.items()}) if names else {}
  model = architecture(architecture.config_class(**dict(vocab_size=VOCAB) | ids | labels | variant.config | changes))
  table, table_stddev = STDDEV.get(variant.family, ("no table", 0.0))
  rng = torch.Generator().manual_seed(zlib.crc32(name.encode()))
  with torch.no_grad():
    for key, parameter in sorted(model.named_parameters()):
      noise = torch.randn(parameter.shape, generator=rng)
      stddev = table_stddev if table in key else 0.2
      # A norm's weight stays about what it starts with (1, or 0 in gemma); no bias stays 0.
      parameter.copy_(parameter + 0.2 * noise if parameter.ndim == 1 else stddev * noise)
  model.save_pretrained(directory)


def load(name: str, directory: Path, **changes) -> transformers.PreTrainedModel:
  """The model of a directory, in fp32, with plain attention. Refuses parameters too few or too many."""
  auto = AUTO[VARIANTS[name].kind]
  model, loaded = auto.from_pretrained(
    directory,
    output_loading_info=True,
    attn_implementation="eager",
    experts_implementation="eager",
    dtype=torch.float32,
    **changes,
  )
  wrong = {kind: sorted(keys) for kind, keys in loaded.items() if keys}
  assert not wrong, f"{directory.name}: {wrong}"
  return model.eval()


@torch.no_grad()
def outputs(model, tokens_BT, attention_mask=None, positions=None) -> dict[str, np.ndarray]:
  """hidden_states [L+1, B, T, D], and logits (of spans [B, T, 2]) and pooled [B, D] where the model has them."""
  given = {"input_ids": tokens_BT, "attention_mask": attention_mask, "position_ids": positions}
  tensors = {key: torch.as_tensor(np.asarray(value), dtype=torch.int64) for key, value in given.items() if value is not None}
  out = model(**tensors, output_hidden_states=True)
  found = {
    "hidden_states": torch.stack(out.hidden_states),
    "logits": torch.stack([out["start_logits"], out["end_logits"]], -1) if "start_logits" in out else out.get("logits"),
    "pooled": out.get("pooler_output"),
  }
  return {key: value.numpy() for key, value in found.items() if value is not None}


def greedy(model, prompts: list[list[int]], num_new: int) -> list[list[int]]:
  """What `generate` adds to every prompt, in one batch padded on the left. No token ends it."""
  tokens_BT, mask_BT, _ = (torch.from_numpy(array) for array in agreement.pad(prompts, "left"))
  model.generation_config = transformers.GenerationConfig(do_sample=False, max_new_tokens=num_new, pad_token_id=PAD)
  return model.generate(tokens_BT, attention_mask=mask_BT)[:, tokens_BT.shape[1] :].tolist()


def clear_greedy(model, lengths: tuple[int, ...], num_new: int) -> tuple[list[list[int]], list[list[int]]]:
  """Random prompts and their greedy continuations, of the first seed with no near tie, which rounding could decide."""
  for seed in range(100):
    rng = np.random.default_rng(seed)
    prompts = [agreement.random_tokens(rng, n, vocab=model.config.vocab_size).tolist() for n in lengths]
    added = greedy(model, prompts, num_new)
    if min(margin(model, *pair) for pair in zip(prompts, added, strict=True)) > CLEAR:
      return prompts, added
  raise AssertionError("every seed has a near tie")


def margin(model, prompt: list[int], added: list[int]) -> float:
  """How much likelier (in logits) every added token is than the next one, by one pass without cache; below 0: it is not."""
  logits_TV = outputs(model, [prompt + added])["logits"][0, len(prompt) - 1 : -1]
  steps = np.arange(len(added))
  chosen_T = logits_TV[steps, added]
  logits_TV[steps, added] = -np.inf
  return float((chosen_T - logits_TV.max(-1)).min())


def gradients(model, tokens_BT: np.ndarray) -> dict[str, torch.Tensor]:
  """How a random mixture of all outputs depends on every parameter."""
  model.zero_grad()
  out = model(torch.as_tensor(tokens_BT), output_hidden_states=True)
  parts = [*out.hidden_states, *(out[key] for key in ("logits", "start_logits", "end_logits", "pooler_output") if key in out)]
  rng = torch.Generator().manual_seed(0)
  sum((torch.randn(part.shape, generator=rng) * part).sum() for part in parts).backward()
  return {key: parameter.grad for key, parameter in model.named_parameters()}


@torch.no_grad()
def change_one_weight(parameter: torch.Tensor, gradient: torch.Tensor, by: float) -> None:
  """Adds to the weight on which the outputs depend most."""
  parameter.view(-1)[gradient.abs().argmax()] += by
