"""Llama 2 7B: 2,000 B tokens in rows of 4,096, sized for a TPU v5e:4x4 or v5e:16x16.

hf download meta-llama/Llama-2-7b-hf --include "*.json" --local-dir runs/tokenizers/Llama-2-7b-hf   # asks for their licence
python -m lm.main --config=configs/llama2_7b.py:v5e_16x16 --workdir=gs://BUCKET/llama2_7b --config.cache_dir=gs://BUCKET/cache

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 6.74 B x 2,000 B = 8.1e22 FLOPs,
at 45% of 256 x 197 TFLOP/s 41 days, 250,000 chip-hours (Meta: 184,000 hours of an A100, table 2 of the paper). 16 chips are
for going on from published weights: 1 B tokens take 8 hours. Expect a training loss of about 1.75 at the end (Touvron et
al. 2023, figure 5, on their text). MaxText publishes 61 to 67% of the peak for models of 16 B and 32 B on v5e-256.

Hyper-parameters: Touvron et al. 2023, section 2.2 (3e-4 after 2,000 steps of warm-up, cosine to a tenth, 0.9, 0.95, 1e-5, decay
0.1, clip 1.0, 4 M tokens a step). Their text is not published; FineWeb-Edu has 1,300 B tokens, so half of it is seen twice.
"""

from ml_collections import ConfigDict

from configs.variants import variant

VARIANTS = {
  "v5e_4x4": dict(tokens_per_device=4096),
  "v5e_16x16": dict(tokens_per_device=8192),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: the topology, v5e_4x4 or v5e_16x16."""
  recipe = dict(
    tokenizer="runs/tokenizers/Llama-2-7b-hf",
    model=dict(name="llama-2-7b"),
    task="causal",
    data="hf:HuggingFaceFW/fineweb-edu:default(held_out=10_000)",
    optimizer=dict(name="adamw", learning_rate=3e-4, schedule="cosine", warmup_steps=2000, final_rate=0.1, b2=0.95, eps=1e-5),
    seq_len=4096,
    batch_size=1024,
    mesh=dict(data=1, fsdp=-1),
    remat="block",
    loss_chunk=512,
    total_steps="2000B tokens",
    eval_every=1000,
    checkpoint_every=100,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
