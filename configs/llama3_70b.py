"""Llama 3 70B in rows of 8,192, sized for a TPU v5p:8x8x8 or two slices of v6e:16x16, which hold a copy of the model each.

hf download meta-llama/Meta-Llama-3-70B --include "*.json" --local-dir runs/tokenizers/Meta-Llama-3-70B   # their licence
python -m lm.main --config=configs/llama3_70b.py:v5p_8x8x8 --workdir=gs://BUCKET/llama3_70b --config.cache_dir=gs://BUCKET/cache

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 70.6 B x 15,000 B = 6.4e24
FLOPs, at 50% of the peak 7.7 M chip-hours of v5p, 625 days of 512 chips, or 3.8 M of v6e, 313 days (Meta: 6.4 M hours of an
H100, model card). 512 chips of v6e see 10 B tokens in 5 hours. MaxText publishes 42.656 s a step of 40,960 tokens per chip on
v6e-256, 462 TFLOP/s of 918 (AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-70B-MaxText/v6e-256). At the end of all
tokens expect 79.5 on MMLU, 5 shots (model card), on their text.

Hyper-parameters: Grattafiori et al. 2024, table 3 and section 3.4.1: a peak of 1.5e-4, cosine to a hundredth (as their 8e-5 to
8e-7 of 405B), 0.1 of decay. They give no batch and no warm-up for this size: 8 M tokens and 8,000 steps are those of 405B,
after its first 252 M tokens.
"""

from ml_collections import ConfigDict

from configs.variants import variant

VARIANTS = {
  "v5p_8x8x8": dict(mesh=dict(data=1, fsdp=-1), tokens_per_device=16_384, remat="block"),
  "v6e_16x16_x2": dict(mesh=dict(replica=2, data=1, fsdp=-1), tokens_per_device=8192, remat="full"),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: the topology, v5p_8x8x8 or v6e_16x16_x2."""
  recipe = dict(
    tokenizer="runs/tokenizers/Meta-Llama-3-70B",
    model=dict(name="llama-3-70b"),
    task="causal",
    data="hf:HuggingFaceFW/fineweb:default(held_out=10_000)",
    optimizer=dict(name="adamw", learning_rate=1.5e-4, schedule="cosine", warmup_steps=8000, final_rate=0.01, b2=0.95),
    seq_len=8192,
    batch_size=1024,
    loss_chunk=512,
    total_steps="15000B tokens",
    eval_every=1000,
    checkpoint_every=200,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
