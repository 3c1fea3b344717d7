"""Mixtral 8x7B in rows of 4,096: 260 B tokens, sized for a TPU v5p:2x2x4, the experts of a layer on eight chips.

hf download mistralai/Mixtral-8x7B-v0.1 --include "*.json" --local-dir runs/tokenizers/Mixtral-8x7B-v0.1   # asks for a name
python -m lm.main --config=configs/mixtral_8x7b.py --workdir=gs://BUCKET/mixtral --config.cache_dir=gs://BUCKET/cache

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: of 46.7 B parameters a token reads
12.9 B; 6 x 12.9 B x 260 B = 2.0e22 FLOPs, at 35% of 16 x 459 TFLOP/s 91 days, 35,000 chip-hours. There is no published loss.
MaxText publishes 13.484 s a step of 49,152 tokens per chip on v6e-256 with the same capacity, 302 TFLOP/s of 918
(AI-Hypercomputer/tpu-recipes, training/trillium/Mixtral-8x7B-MaxText).

Jiang et al. 2024 give the shape and no hyper-parameters. These are Llama 2's for its 13 B, the size that a token reads here
(Touvron et al. 2023, section 2.2: 3e-4 after 2,000 steps of warm-up, cosine to a tenth, 0.9, 0.95, 1e-5, decay 0.1, clip 1.0,
4 M tokens a step); the load balance weighs what the released config.json says; the router's z-loss is 0.001 as in Zoph et al.
2022. 260 B tokens are 20 for each parameter that is read (Hoffmann et al. 2022). Experts take 1.25 of an even share of a row:
only with a capacity do they split over chips. It drops what is too much, so published weights go on with it only after a look.
"""

from ml_collections import ConfigDict

from configs.variants import variant

VARIANTS = {"v5p_2x2x4": dict(mesh=dict(data=1, fsdp=-1, expert=8))}


def get_config(arg: str = "") -> ConfigDict:
  """arg: the topology, v5p_2x2x4."""
  recipe = dict(
    tokenizer="runs/tokenizers/Mixtral-8x7B-v0.1",
    model=dict(name="mixtral-8x7b", expert_capacity=1.25, router_z_weight=0.001),
    task="causal",
    data="hf:HuggingFaceFW/fineweb-edu:sample-350BT(held_out=10_000)",
    optimizer=dict(name="adamw", learning_rate=3e-4, schedule="cosine", warmup_steps=2000, final_rate=0.1, b2=0.95, eps=1e-5),
    seq_len=4096,
    batch_size=1024,
    tokens_per_device=8192,
    remat="block",
    loss_chunk=512,
    total_steps="260B tokens",
    eval_every=500,
    checkpoint_every=25,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
