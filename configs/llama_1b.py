"""A Llama of 1.2 B parameters (the shape of Llama 3.2 1B) on 100 B tokens of FineWeb-Edu, on a TPU v5e:4x4.

hf download meta-llama/Llama-3.2-1B --include "*.json" --local-dir runs/tokenizers/Llama-3.2-1B      # asks for their licence
hf download TinyLlama/TinyLlama_v1.1 --include "*.json" --local-dir runs/tokenizers/TinyLlama_v1.1   # for :tinyllama; free
python -m lm.main --config=configs/llama_1b.py:tinyllama --workdir=gs://BUCKET/tinyllama --config.cache_dir=gs://BUCKET/cache

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 1.24 B x 100 B = 7.4e20 FLOPs,
at 45% of 16 x 197 TFLOP/s 145 hours, 2,300 chip-hours; `:tinyllama` 6 x 1.10 B x 105 B = 6.9e20, 136 hours, 2,200 chip-hours;
the compiler predicts 28% and 251 and 257 hours.
`--config.total_steps='10B tokens'` is a tenth of either.

`:tinyllama` is a shape with a published curve: TinyLlama 1.1B after 105 B tokens of SlimPajama and StarCoder has 43.5 on
HellaSwag (jzhang38/TinyLlama, README), Pythia-1B after as many 42.0; FineWeb-Edu is all text, so expect at least that. Their
code reached 24,000 tokens/s on an A100 of 40 GB, 51% of its peak by 6 N. The default shape has no published run from random
weights (Meta's was distilled), so compare it with `:tinyllama` by bits per byte.

Hyper-parameters of both: Zhang et al. 2024, section 2.3 (2 M tokens a step in rows of 2,048, 4e-4 after 2,000 steps of
warm-up, cosine to a tenth, 0.9, 0.95, decay 0.1, clip 1.0).
"""

from ml_collections import ConfigDict

from configs.variants import variant

VARIANTS = {
  "v5e_4x4": dict(),
  "tinyllama": dict(tokenizer="runs/tokenizers/TinyLlama_v1.1", model=dict(name="tinyllama-1.1b"), total_steps="105B tokens"),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: v5e_4x4 or tinyllama, of the same size on the same slice."""
  recipe = dict(
    tokenizer="runs/tokenizers/Llama-3.2-1B",
    model=dict(name="llama-3.2-1b"),
    task="causal",
    data="hf:HuggingFaceFW/fineweb-edu:sample-100BT(held_out=10_000)",
    optimizer=dict(name="adamw", learning_rate=4e-4, schedule="cosine", warmup_steps=2000, final_rate=0.1, b2=0.95),
    seq_len=2048,
    batch_size=1024,
    mesh=dict(data=1, fsdp=-1),
    tokens_per_device=8192,
    remat="dots",
    loss_chunk=256,
    total_steps="100B tokens",
    eval_every=1000,
    checkpoint_every=250,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
