"""GPT-2's block at three sizes on Python's documentation, byte by byte: what `tools.bench train` times beside transformers.

python -m tools.bench train --peer=hf --config=experiments/benchmarks/shapes.py:gpt2_10m

The first two are the shapes of nanoGPT's recipes for characters (a vocabulary of 261 instead of 65), the third is GPT-2's
smallest with half its rows' length. Layers are unrolled, as in configs for a CPU.
"""

from ml_collections import ConfigDict

# Layers, model_dim, heads, vocabulary; tokens a row, rows.
SHAPES = {
  "gpt2_1m": ((4, 128, 4, 261), (64, 12)),
  "gpt2_10m": ((6, 384, 6, 261), (256, 16)),
  "gpt2_124m": ((12, 768, 12, 50257), (512, 4)),
}


def get_config(arg: str = "gpt2_10m") -> ConfigDict:
  """arg: a shape."""
  if arg not in SHAPES:
    raise ValueError(f"experiments/benchmarks/shapes.py:{arg}: accepted are {', '.join(SHAPES)}")
  (num_layers, model_dim, num_heads, vocab_size), (seq_len, batch_size) = SHAPES[arg]
  sizes = dict(num_layers=num_layers, model_dim=model_dim, num_heads=num_heads, ffn_dim=4 * model_dim)
  return ConfigDict(
    dict(
      tokenizer="bytes",
      data="pydocs",
      task="causal",
      model=dict(name="gpt2", vocab_size=vocab_size, max_len=seq_len, **sizes),
      optimizer="adamw",
      seq_len=seq_len,
      batch_size=batch_size,
      scan_unroll=num_layers,
    )
  )
