"""Masked pretraining (BERT's recipe) on the documentation inside Python, on the backbone of configs/tiny.py.

python -m lm.main --config=configs/tiny_mlm.py --workdir=runs/tiny_mlm

15% of positions, 80/10/10, masks drawn anew every epoch. `configs/tiny_mlm.py:smoke` is a half-minute run.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "smoke"."""
  if arg not in ("", "smoke"):
    raise ValueError(f"configs/tiny_mlm.py:{arg}: accepted arguments are '' and 'smoke'")
  config = ConfigDict(
    dict(
      tokenizer="runs/tokenizer.model",
      task=dict(name="mlm", mask_rate=0.15),
      data="pydocs",
      model=dict(name="bert-tiny"),
      optimizer=dict(name="muon", learning_rate=0.02, adam_learning_rate=4e-3, schedule="linear", weight_decay=0.05),
      seq_len=256,
      batch_size=8,
      total_steps=240,
      eval_every="20%",
    )
  )
  if arg == "smoke":
    config.tokenizer = "bytes"
    config.model = dict(name="bert-tiny", num_layers=2, model_dim=64, num_heads=2, ffn_dim=128)
    config.total_steps = 20
  return config
