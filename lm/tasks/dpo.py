"""Preference optimisation without a reward model: of two answers to a prompt, the chosen one becomes likelier.

DPO (Rafailov et al. 2023), with answers' lengths divided out (Lambert et al. 2024, Tulu 3), IPO (Azar et al. 2023), and SimPO
(Meng et al. 2024), which has no reference model.
"""

import dataclasses

import numpy as np

from lm.data import template
from lm.data.dialogue import number_answers, read_pair
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task

KINDS = ("sigmoid", "sigmoid_norm", "ipo", "simpo")
CHOSEN, REJECTED, NEITHER = range(3)  # of a token in its row


@dataclasses.dataclass(frozen=True)
class Dpo(Task):
  """Pairs of answers; a row holds the prompt with the chosen answer and the prompt with the rejected one, as two segments.

  So `seq_len` is the length of both together. `prepare({"prompt": "Hi", "chosen": "Yo", "rejected": "No"})` stores the tokens
  c of the one and r of the other conversation as [c0 r0 c1 r1 ...] and their sides [0 1 0 1 ...], so that a row cut to any
  length keeps both, and the longer one loses its end first; `said` is 1 on answers and what ends them. `corrupt` puts the
  sides one after the other: tokens [c0 c1 ... r0 r1 ...], segment ids [1 1 ... 2 2 ...]. Where all of an answer was cut off,
  the pair has no weight.

  With log p summed over an answer's tokens, ratio = log p - log p_reference, and reward = beta ratio:
    sigmoid: -log sigmoid(reward_chosen - reward_rejected)
    sigmoid_norm: the same, each ratio divided by the answer's number of tokens
    ipo: (ratio_chosen - ratio_rejected - 1 / (2 beta))^2, ratios divided as well
    simpo: -log sigmoid(reward_chosen - reward_rejected - gamma), reward = beta log p / number of tokens
  The reference is the model that the run started from: under a PEFT method the model without it, else a frozen copy of what
  trains (`lm.state`). Dropout, where the model has some, is in the tuned model's pass only.

  Sums per pair: loss, accuracy (rewards in the right order; equal ones count a half), margin (of the rewards),
  chosen_reward, rejected_reward, and log_ratio: nats per token of both answers by which the model has moved.
  """

  kind: str = "sigmoid"  # of loss: sigmoid (DPO), sigmoid_norm (by length), ipo, or simpo (by length, no reference)
  beta: float = 0.1  # how close to stay to the reference; usual are 0.1 for sigmoid and ipo, 5 for sigmoid_norm, 2 for simpo
  label_smoothing: float = 0.0  # share of pairs that are taken to be labelled the wrong way, not of ipo
  gamma: float = 0.0  # of simpo: by how much the rewards should differ, usual is half of beta
  template: str = ""  # chatml, llama3, gemma, qwen, plain, or own: the tokenizer's; unset: own, else chatml, else plain

  causal = True
  packed = False
  prepare_fields = ("template",)
  evaluators = (("preference", "validation"),)
  head = "lm"

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"task.kind={self.kind!r}: accepted are {', '.join(KINDS)}")
    if self.beta <= 0:
      raise ValueError(f"task.beta={self.beta}: must be above 0")
    if not 0 <= self.label_smoothing < 0.5:
      raise ValueError(f"task.label_smoothing={self.label_smoothing}: must be from 0 to less than 0.5")
    if self.label_smoothing and self.kind == "ipo":
      raise ValueError(f"task.label_smoothing={self.label_smoothing}: no effect on kind=ipo, which has no labels to smooth")
    if self.gamma and self.kind != "simpo":
      raise ValueError(f"task.gamma={self.gamma}: no effect on kind={self.kind}, only simpo has it")
    if self.template not in ("", *template.NAMES):
      raise ValueError(f"task.template={self.template!r}: accepted are {', '.join(template.NAMES)}")

  @property
  def num_segments(self) -> int:
    return 2

  @property
  def needs_reference(self) -> bool:
    return self.kind != "simpo"

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("lm")

  @property
  def fields(self) -> dict[str, Field]:
    return {"tokens": Field(("T",)), "side": Field(("T",), pad=NEITHER), "said": Field(("T",))}

  def check(self, tok, seq_len):
    template.choose(self.template, tok)

  def prepare(self, example, tok):
    pair, name = read_pair(example), template.choose(self.template, tok)
    before = sum(message["role"] == "assistant" for message in pair.prompt)
    both = [template.tokenize([*pair.prompt, *answer], tok, name) for answer in (pair.chosen, pair.rejected)]
    stored = {
      "tokens": np.concatenate([ids_N for ids_N, _ in both]),
      "side": np.concatenate([np.full(len(ids_N), side, np.uint8) for side, (ids_N, _) in enumerate(both)]),
      "said": np.concatenate([(number_answers(said_N) > before).astype(np.uint8) for _, said_N in both]),
    }
    kept = np.argsort(np.concatenate([np.arange(len(ids_N)) for ids_N, _ in both]), kind="stable")
    return [{column: values[kept] for column, values in stored.items()}]

  def corrupt(self, rows, noise, tok, width):
    order_RT = np.argsort(rows["side"], axis=1, kind="stable")
    tokens_RT, side_RT, said_RT = (np.take_along_axis(rows[name], order_RT, axis=1) for name in ("tokens", "side", "said"))
    following = lambda x_RT, last: np.concatenate([x_RT[:, 1:], np.full_like(x_RT[:, :1], last)], axis=1)
    counted_RT = (following(side_RT, NEITHER) == side_RT) & (following(said_RT, 0) > 0)
    counted = {name: counted_RT & (side_RT == side) for name, side in (("chosen", CHOSEN), ("rejected", REJECTED))}
    whole_R = counted["chosen"].any(1) & counted["rejected"].any(1)
    column_RT = np.broadcast_to(np.arange(tokens_RT.shape[1]), tokens_RT.shape)
    begins_RT = np.where(side_RT == REJECTED, (side_RT == CHOSEN).sum(1, keepdims=True), 0)
    return {
      "tokens": tokens_RT,
      "segment_ids": np.where(side_RT == NEITHER, 0, side_RT + 1).astype(np.int32),
      "positions": np.where(side_RT == NEITHER, 0, column_RT - begins_RT).astype(np.int32),
      "labels": following(tokens_RT, 0),
      "weights": whole_R.astype(np.float32),
      **{f"{name}_weights": (mine_RT & whole_R[:, None]).astype(np.float32) for name, mine_RT in counted.items()},
    }

  def denominators(self, batch):
    pairs, tokens = batch["weights"].sum(), batch["chosen_weights"].sum() + batch["rejected_weights"].sum()
    sums = dict.fromkeys(("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"), pairs)
    return sums | ({"log_ratio": tokens} if self.needs_reference else {})

  def loss(self, forward, batch, rng):
    chosen_B, rejected_B = self._log_likelihoods(forward, batch, rng, tuned=True)
    if self.needs_reference:
      before = self._log_likelihoods(forward, batch, None, tuned=False)
      chosen_B, rejected_B = chosen_B - before[0], rejected_B - before[1]
    moved_B = chosen_B + rejected_B
    if self.kind != "sigmoid":
      chosen_B = chosen_B / batch["chosen_weights"].sum(1).clip(1)
      rejected_B = rejected_B / batch["rejected_weights"].sum(1).clip(1)
    margin_B = self.beta * (chosen_B - rejected_B)
    found = {
      "loss": self._losses(forward, margin_B),
      "accuracy": (margin_B > 0) + 0.5 * (margin_B == 0),
      "margin": margin_B,
      "chosen_reward": self.beta * chosen_B,
      "rejected_reward": self.beta * rejected_B,
    } | ({"log_ratio": moved_B} if self.needs_reference else {})
    return {name: (value_B * batch["weights"]).sum() for name, value_B in found.items()}

  def _losses(self, forward, margin_B):
    if self.kind == "ipo":
      return (margin_B / self.beta - 1 / (2 * self.beta)) ** 2
    x_B, wrong = margin_B - self.gamma, self.label_smoothing
    return -(1 - wrong) * forward.log_sigmoid(x_B) - wrong * forward.log_sigmoid(-x_B)

  def _log_likelihoods(self, forward, batch, rng, tuned):
    """log p of the chosen and of the rejected answer, each [B], summed over its tokens."""
    h_BTD = forward(batch, rng, tuned=tuned)
    log_p_BT = forward.label_log_probs(h_BTD, batch["labels"], batch, tuned=tuned)
    return [(log_p_BT * batch[f"{side}_weights"]).sum(1) for side in ("chosen", "rejected")]
