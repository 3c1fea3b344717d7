"""77 intents (Casanueva et al. 2020) from few examples of each: a new head on all-MiniLM-L6-v2, a pattern, or its embeddings.

python -m lm.main --config=experiments/banking77_intent/intent.py:classify-10 --config.data_dir=DATA --workdir=runs/bank-10

DATA has banking77/train.csv and test.csv. MiniLM's package has no head of masked words, so `prompt` starts from a model
pretrained here, runs/wikitext_mlm of experiments/pretrain. `--config.data.subset_seed=1` draws other examples.
"""

from ml_collections import ConfigDict

from experiments import minilm

# Epochs by the number of examples of each intent: about 500 steps of 32, or 5 times all.
EPOCHS = {"5": 40, "10": 20, "all": 5}
KINDS = ("classify", "prompt", "embed")
ARGUMENTS = tuple(f"{kind}-{count}" for kind in KINDS for count in EPOCHS)


def get_config(arg: str = "classify-10") -> ConfigDict:
  """arg: one of ARGUMENTS."""
  if arg not in ARGUMENTS:
    raise ValueError(f"experiments/banking77_intent/intent.py:{arg}: accepted are {', '.join(ARGUMENTS)}")
  kind, count = arg.split("-")
  few = {} if count == "all" else {"examples_per_label": int(count)}
  data = dict(name="table", path="banking77/train.csv", test="banking77/test.csv", label="category", **few)
  total = f"{EPOCHS[count]} epochs"
  if kind == "classify":
    return minilm.recipe(task=dict(name="classify", pooling="mean"), data=data, total_steps=total)
  if kind == "embed":
    full = dict(batch_size=128, length_buckets=())  # rows of all lengths together, so that none stands beside a few others only
    return minilm.recipe(task="embed", data=data, total_steps=total, **full)
  task = dict(name="prompt_classify", pattern="{text} This is about {answer}.")
  rows = dict(seq_len=256, length_buckets=())  # words of as many pieces share a segment of the row
  return minilm.recipe(
    init_from="runs/wikitext_mlm", task=task, data=data, total_steps=total, optimizer=minilm.adamw(1e-3), **rows
  )
