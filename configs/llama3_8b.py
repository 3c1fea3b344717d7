"""Llama 3 8B in rows of 8,192: from random weights on a TPU v5p:2x2x4 or v6e:4x4, or LoRA on its weights on a v5e:2x4.

hf download meta-llama/Meta-Llama-3-8B --include "*.json" --local-dir runs/tokenizers/Meta-Llama-3-8B   # asks for their licence
python -m lm.main --config=configs/llama3_8b.py:v6e_4x4 --workdir=gs://BUCKET/llama3_8b --config.cache_dir=gs://BUCKET/cache
python -m lm.main --config=configs/llama3_8b.py:lora --workdir=gs://BUCKET/llama3_8b_math

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 8.03 B x 15,000 B = 7.2e23
FLOPs, 440,000 chip-hours at 50% of a v6e's 918 TFLOP/s (Meta: 1.3 M hours of an H100, model card). 16 chips see 1 B tokens in
1.8 hours (v6e) or 3.6 (v5p). MaxText publishes 3.393 s a step of 24,576 tokens per chip on v6e-16, 7,243 tokens/s/chip
(AI-Hypercomputer/tpu-recipes, training/trillium/Llama3.1-8B-MaxText/v6e-16). At the end of all tokens expect 66.6 on MMLU, 5
shots (model card), on their text.

Hyper-parameters: Grattafiori et al. 2024, table 3 and section 3.4.1: a peak of 3e-4, cosine to a hundredth (as their 8e-5 to
8e-7 of 405B), 0.1 of decay. They give no batch and no warm-up for this size: 4 M tokens and 2,000 steps are Llama 2's.

`:lora` goes on from the published weights with 1 B tokens of OpenWebMath: rank 16 on all linear layers at 2e-4, after Biderman
et al. 2024 (LoRA learns less and forgets less), who do so with Llama 2 7B; there is no published figure for this model.
4 N D: 3.2e19 FLOPs, 14 hours at 40% of 8 x 197 TFLOP/s, 115 chip-hours.
"""

from ml_collections import ConfigDict

from configs.variants import variant

ADAM = dict(name="adamw", learning_rate=3e-4, schedule="cosine", warmup_steps=2000, final_rate=0.01, b2=0.95)
VARIANTS = {
  "v5p_2x2x4": dict(tokens_per_device=32_768),
  "v6e_4x4": dict(tokens_per_device=16_384),
  "lora": dict(
    init_from="meta-llama/Meta-Llama-3-8B",
    peft=dict(name="lora", rank=16, alpha=32.0, targets=".*(attention/(query|key|value|out)|ffn/(gate|up|down))"),
    data="hf:open-web-math/open-web-math(held_out=1_000)",
    optimizer=ADAM | dict(learning_rate=2e-4, warmup_steps=100, weight_decay=0.0),
    batch_size=64,
    tokens_per_device=8192,
    total_steps="1B tokens",
    eval_every=200,
  ),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: the topology, v5p_2x2x4 or v6e_4x4, or lora."""
  recipe = dict(
    tokenizer="runs/tokenizers/Meta-Llama-3-8B",
    model=dict(name="llama-3-8b"),
    task="causal",
    data="hf:HuggingFaceFW/fineweb:default(held_out=10_000)",
    optimizer=ADAM,
    seq_len=8192,
    batch_size=512,
    mesh=dict(data=1, fsdp=-1),
    remat="block",
    loss_chunk=512,
    total_steps="15000B tokens",
    eval_every=1000,
    checkpoint_every=100,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
