"""Financial sentiment from a small masked model: direct; its texts read first; another task first; both tasks in one run.

python -m lm.main --config=experiments/transfer/transfer.py:direct --config.data_dir=DATA --workdir=runs/transfer/direct-s0

DATA has financial_phrasebank/Sentences_AllAgree.txt and sst2/train.tsv, dev.tsv. The base is runs/wikitext_mlm of
experiments/pretrain. `texts` and `sst2` are the steps before: `continued` starts from runs/transfer/texts-s0, masked
pretraining on the sentences of the task's training split, `intermediate` from runs/transfer/sst2-s0.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import minilm
from experiments.phrasebank_monitor import sentiment
from experiments.sst2_methods import sst2

BASE = "runs/wikitext_mlm"
# What a run starts from, by argument; the last two are the steps before.
STARTS = {
  "direct": BASE,
  "continued": "runs/transfer/texts-s0",
  "intermediate": "runs/transfer/sst2-s0",
  "together": BASE,
  "texts": BASE,
  "sst2": BASE,
}
STEPS = 285  # 5 epochs of the 1,821 sentences of the training split, in batches of 32
CLASSIFY = dict(name="classify", pooling="mean")
OTHER = CLASSIFY | dict(head_name="sst2")  # a head of its own, so that the next task starts with a new one


def get_config(arg: str = "direct") -> ConfigDict:
  """arg: one of STARTS."""
  if arg not in STARTS:
    raise ValueError(f"experiments/transfer/transfer.py:{arg}: accepted are {', '.join(STARTS)}")
  phrases = sentiment.make_data("all")
  common: dict[str, Any] = dict(init_from=STARTS[arg], optimizer=minilm.adamw(1e-3), total_steps="5 epochs")
  if arg == "texts":
    del phrases["label"]
    return minilm.recipe(**common | dict(task="mlm", data=phrases, total_steps="20 epochs", length_buckets=()))
  if arg == "sst2":
    return minilm.recipe(**common | dict(task=OTHER, data=sst2.DATA, total_steps="3 epochs"))
  if arg == "together":
    other = dict(task=OTHER, data=sst2.DATA, weight=1.0)
    streams = dict(phrases=dict(task=CLASSIFY, data=phrases, weight=1.0), sst2=other)
    # As many rows of the task as `direct` reads, and as many of the other beside them.
    of = lambda split: dict(name="classification", split=split, stream="phrases")
    judged = dict(evaluators=dict(validation=of("validation"), test=of("test")))  # called as in the other runs
    return minilm.recipe(**common | judged | dict(streams=streams, total_steps=2 * STEPS, length_buckets=()))
  return minilm.recipe(task=CLASSIFY, data=phrases, **common)
