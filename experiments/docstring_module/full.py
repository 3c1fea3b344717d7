"""Fine-tune the masked model of configs/tiny_mlm.py on 'which module is this docstring from'; every parameter trains.

python -m lm.main --config=experiments/docstring_module/full.py --workdir=runs/docstring_module/full-s0
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """arg: the pretrained workdir, by default runs/tiny_mlm."""
  return ConfigDict(
    dict(
      init_from=arg or "runs/tiny_mlm",
      task=dict(name="classify", pooling="mean"),
      data=dict(name="pydocs", label="module"),
      optimizer=dict(name="muon", learning_rate=0.01, adam_learning_rate=0.03, schedule="linear", warmup_steps="10%"),
      scan_unroll=4,
      seq_len=48,
      length_buckets=(24, 48),
      batch_size=64,
      total_steps="1 epoch",
      eval_every="50%",
      checkpoint_every="100%",
    )
  )
