"""Supervised fine-tuning on instructions and conversations (Ouyang et al. 2022): the next token of what the assistant says."""

import dataclasses

import numpy as np

from lm.data import template
from lm.data.dialogue import number_answers, read_conversation
from lm.models.head_spec import HeadSpec
from lm.shapes import Field
from lm.tasks.task import Task

# Which tokens count, and the least value of the stored column `said` that says so.
LOSS_ON = {"all": 0, "answers": 1, "last": 2}


@dataclasses.dataclass(frozen=True)
class Sft(Task):
  """Next-token prediction of the assistant's turns, the end of each included, over conversations packed into rows.

  `prepare({"prompt": "Hi", "response": "Yo"})` in the template `plain` stores the tokens of "<s>user:\\nHi</s>", then those
  of "assistant:\\nYo</s>", and `said`, which is 2 on Y, o and the last </s>, else 0; 1 stands for answers before the last. A
  row holds all tokens but the last as inputs, all but the first as labels, and weight 1 where the label is said.
  Conversations of a row do not see each other. One that is longer than a row loses its end: what is left of its answers
  is learned, and if nothing is, it has no weight. How many are cut stands in the table of data at the start of a run.
  """

  template: str = ""  # chatml, llama3, gemma, qwen, plain, or own: the tokenizer's; unset: own, else chatml, else plain
  loss_on: str = "answers"  # what is learned: answers (all turns of the assistant), last (the last of them), all (all tokens)

  causal = True
  splits = False
  prepare_fields = ("template",)
  head = "lm"

  def __post_init__(self):
    if self.template not in ("", *template.NAMES):
      raise ValueError(f"task.template={self.template!r}: accepted are {', '.join(template.NAMES)}")
    if self.loss_on not in LOSS_ON:
      raise ValueError(f"task.loss_on={self.loss_on!r}: accepted are {', '.join(LOSS_ON)}")

  @property
  def head_spec(self) -> HeadSpec:
    return HeadSpec("lm")

  @property
  def fields(self) -> dict[str, Field]:
    return {
      "tokens": Field(("T",)),
      "labels": Field(("T",), column="tokens", shift=1),
      "said": Field(("T",), shift=1),
    }

  def check(self, tok, seq_len):
    template.choose(self.template, tok)

  def prepare(self, example, tok):
    ids_N, said_N = template.tokenize(read_conversation(example), tok, template.choose(self.template, tok))
    number_N = number_answers(said_N)
    return [{"tokens": ids_N, "said": np.where(said_N & (number_N == number_N.max()), 2, said_N).astype(np.uint8)}]

  def corrupt(self, rows, noise, tok, width):
    counted_RT = (rows["segment_ids"] > 0) & (rows["said"] >= LOSS_ON[self.loss_on])
    return {"tokens": rows["tokens"], "labels": rows["labels"], "weights": counted_RT.astype(np.float32)}

  def denominators(self, batch):
    weight = batch["weights"].sum()
    return {"loss": weight, "accuracy": weight}

  def loss(self, forward, batch, rng):
    return forward.token_sums(forward(batch, rng), batch["labels"], batch["weights"], batch, chunk=forward.loss_chunk)
