"""ModernBERT-base on FineWeb-Edu: 100 B tokens in rows of 1,024, then 15 B in rows of 8,192, on a TPU v5e:2x4.

hf download answerdotai/ModernBERT-base --include "*.json" --local-dir runs/tokenizers/ModernBERT-base
python -m lm.main --config=configs/modernbert_base.py --workdir=gs://BUCKET/modernbert
python -m lm.main --config=configs/modernbert_base.py:long --config.init_from=gs://BUCKET/modernbert --workdir=gs://BUCKET/long

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 150 M x 100 B = 9.0e19 FLOPs,
at 35% of 8 x 197 TFLOP/s 45 hours, 360 chip-hours; `:long` at least 7 hours more (its attention is not in the 6 N D). The
published model saw 2,000 B tokens and has a GLUE average of 88.4 (Warner et al. 2024, table 1), BERT-base 84.7 there; a
twentieth of the tokens has no published figure, so expect a value between.

Hyper-parameters: Warner et al. 2024, table 3 and appendix A (30% masked, 4,608 rows, 8e-4, then 576 rows of 8,192 at a
constant 3e-4, 0.9, 0.98, 1e-6, warm-up of 3% here and 3 B tokens there, decay over the last fifth here and the last 50 B
tokens there). Other than theirs: AdamW with clipped gradients for StableAdamW; no growing batch; one base of rotary positions
for both phases, that of the released model, where theirs changes from 10,000 to 160,000 between them; data is FineWeb-Edu,
since theirs is not published.
"""

from ml_collections import ConfigDict

from configs.variants import variant

# Their decay of 1e-5 a step is not multiplied by the learning rate, ours is: 0.0125 x 8e-4 = 0.033 x 3e-4 = 1e-5.
ADAM = dict(name="adamw", learning_rate=8e-4, schedule="wsd", warmup_steps="3%", weight_decay=0.0125, b2=0.98, eps=1e-6)
VARIANTS = {
  "1024": dict(),
  "long": dict(
    init_from="runs/modernbert_base-s0",
    optimizer=ADAM | dict(learning_rate=3e-4, schedule="constant", warmup_steps=0, weight_decay=0.033),
    seq_len=8192,
    batch_size=576,
    total_steps="15B tokens",
  ),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: 1024 or long, which starts from the run of 1024."""
  recipe = dict(
    tokenizer="runs/tokenizers/ModernBERT-base",
    model=dict(name="modernbert-base"),
    task=dict(name="mlm", mask_rate=0.3),
    data="hf:HuggingFaceFW/fineweb-edu:sample-100BT(held_out=10_000)",
    optimizer=ADAM,
    seq_len=1024,
    batch_size=4608,
    tokens_per_device=8192,
    remat="dots",
    total_steps="100B tokens",
    eval_every=1000,
    checkpoint_every=500,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
