"""GPT-2 124M on 10 B tokens of FineWeb, on a TPU v5e:2x2.

hf download openai-community/gpt2 --include "*.json" "*.txt" --local-dir runs/tokenizers/gpt2
python -m lm.main --config=configs/gpt2_small.py --workdir=gs://BUCKET/gpt2 --config.cache_dir=gs://BUCKET/cache

`python -m tools.prepare store --config=configs/gpt2_small.py --parts=64 --config.cache_dir=gs://BUCKET/cache` tokenises before
the TPU is there (pip install 'lm[beam]').

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 124 M x 10 B = 7.4e18 FLOPs, at
30% of 4 x 197 TFLOP/s 8.7 hours, 35 chip-hours. Expect a validation loss of 3.28, which llm.c reaches with these tokens and
hyper-parameters (karpathy/llm.c, discussion 481 and scripts/run_gpt2_124M.sh). Other than there a token sees its own document
only, and the held-out documents are the first 10,000 of the sample, so +-0.02 means nothing.

Hyper-parameters: that script (0.5 M tokens a step, 6e-4 after 700 steps of warm-up, cosine to 0, decay 0.1, clip 1.0) with
Adam's 0.9 and 0.95. `:owt` is nanoGPT's config/train_gpt2.py: 300 B tokens of OpenWebText, cosine to a tenth, loss about 2.85;
30 times the cost.
"""

from ml_collections import ConfigDict

from configs.variants import variant

ADAM = dict(name="adamw", learning_rate=6e-4, schedule="cosine", warmup_steps=700, weight_decay=0.1, b2=0.95, eps=1e-8)
VARIANTS = {
  "fineweb": dict(),
  "owt": dict(
    data="hf:Skylion007/openwebtext(held_out=4_000)",
    optimizer=ADAM | dict(warmup_steps=2000, final_rate=0.1),
    batch_size=480,
    total_steps="295B tokens",  # 600,000 steps of 491,520
  ),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: fineweb or owt."""
  recipe = dict(
    tokenizer="runs/tokenizers/gpt2",
    model=dict(name="gpt2", vocab_size=50304),  # 50,257 pieces; a multiple of 128 for the matrix units, as in both sources
    task="causal",
    data="hf:HuggingFaceFW/fineweb:sample-10BT(held_out=10_000)",
    optimizer=ADAM,
    seq_len=1024,
    batch_size=512,
    tokens_per_device=8192,
    loss_chunk=128,
    total_steps="10B tokens",
    eval_every=500,
    checkpoint_every=1000,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
