"""Causal pretraining on the documentation inside Python: 3.4 M parameters, a few minutes on a laptop CPU.

python -m lm.main --config=configs/tiny.py --workdir=runs/tiny

`configs/tiny.py:smoke` runs everything in half a minute, with bytes for a tokenizer, so that nothing must be prepared.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "smoke"."""
  if arg not in ("", "smoke"):
    raise ValueError(f"configs/tiny.py:{arg}: accepted arguments are '' and 'smoke'")
  config = ConfigDict(
    dict(
      tokenizer="runs/tokenizer.model",
      task="causal",
      data="pydocs",
      model=dict(name="gpt2-tiny"),
      optimizer=dict(name="muon", learning_rate=0.012, adam_learning_rate=0.016, schedule="linear", weight_decay=0.05),
      scan_unroll=4,  # all layers: a step takes 0.87 of the time on two cores
      seq_len=256,
      batch_size=8,
      total_steps=320,
      eval_every="20%",
      evaluators=dict(
        validation=dict(name="likelihood", split="validation"),
        compressors=dict(name="compression", split="validation"),
      ),
    )
  )
  if arg == "smoke":
    config.tokenizer = "bytes"
    config.model = dict(name="gpt2-tiny", num_layers=2, model_dim=64, num_heads=2, ffn_dim=128)
    config.scan_unroll = 1
    config.total_steps = 20
    config.evaluators = dict(validation=dict(name="likelihood", split="validation"))
  return config
