"""BERT-base on Wikipedia and books: masked language modelling alone, 131 B tokens, on a TPU v5e:2x4.

hf download google-bert/bert-base-uncased --include "*.json" "*.txt" --local-dir runs/tokenizers/bert-base-uncased
python -m lm.main --config=configs/bert_base.py --workdir=gs://BUCKET/bert_base --config.cache_dir=gs://BUCKET/cache

Not run; what preflight predicts stands in experiments/tpu_preflight/README.md. Arithmetic: 6 x 110 M x 131 B = 8.7e19 FLOPs,
at 35% of 8 x 197 TFLOP/s 44 hours, 350 chip-hours. Expect a held-out perplexity near 4.0 and, fine-tuned, 84.7 on MNLI-m and
92.7 on SST-2 (Liu et al. 2019, table 3, the row of 256 sequences; their vocabulary and held-out text are others); BERT-base
itself has a GLUE average of 79.6 (Devlin et al. 2018, table 1).

Hyper-parameters: Devlin et al. 2018, appendix A.2 (256 sequences of 512, 1 M steps, Adam 1e-4, 0.9, 0.999, decay 0.01, 10,000
steps of warm-up, linear decay, dropout 0.1; 15% of tokens, 80/10/10), epsilon as in their code. As in RoBERTa there is no next
sentence, and masks are drawn anew. Words of the two texts are 2,500 M to 800 M, as theirs; the books are Project Gutenberg's,
since BookCorpus is not given out any more.

`:128` is their first phase, 900,000 steps of 128 tokens (30 B); `:phase2` goes on from it for the last 100,000 with 512, at the
learning rate that the linear decay has left, and with fresh moments. Together they cost a third of the above.
"""

from ml_collections import ConfigDict

from configs.variants import variant

MLM = dict(name="mlm", mask_rate=0.15)
ADAM = dict(name="adamw", learning_rate=1e-4, schedule="linear", warmup_steps=10_000, weight_decay=0.01, b2=0.999, eps=1e-6)
VARIANTS = {
  "512": dict(),
  "128": dict(seq_len=128, total_steps=900_000),
  "phase2": dict(
    init_from="runs/bert_base-128-s0", total_steps=100_000, optimizer=ADAM | dict(learning_rate=1e-5, warmup_steps=0)
  ),
}


def get_config(arg: str = "") -> ConfigDict:
  """arg: 512, 128 or phase2, which starts from the run of 128."""
  recipe = dict(
    tokenizer="runs/tokenizers/bert-base-uncased",
    model=dict(name="bert-base-uncased"),
    streams=dict(
      wikipedia=dict(task=MLM, data="hf:wikimedia/wikipedia:20231101.en(held_out=5_000)", weight=2500.0),
      books=dict(task=MLM, data="hf:sedthh/gutenberg_english(text=TEXT,held_out=50)", weight=800.0),
    ),
    optimizer=ADAM,
    seq_len=512,
    batch_size=256,
    tokens_per_device=8192,
    total_steps=1_000_000,
    eval_every=25_000,
    checkpoint_every=10_000,
    log_every=100,
  )
  return ConfigDict(recipe | variant(arg, VARIANTS))
