"""The characters of Shakespeare at the two sizes and budgets of nanoGPT's recipes, with a block and an optimizer of our own.

python -m tools.train_tokenizer --kind=char --data="text(path='DATA/train.txt', unit='file')" --output=runs/shakespeare.model
python -m lm.main --config=configs/shakespeare_char.py:cpu --config.data_dir=DATA --workdir=runs/shakespeare-cpu

DATA has train.txt and val.txt, nanoGPT's cut of its input.txt at 90%: `head -c 1003854 input.txt > train.txt` and
`tail -c 111540 input.txt > val.txt`. nanoGPT publishes a validation loss of 1.88 for `cpu` (4 layers of 128, T 64, 12 rows,
2,000 steps) and of 1.4697 for the other one (6 layers of 384, T 256, 64 rows, 5,000 steps; one A100), with GPT-2's block and
AdamW. The loss here is that of all of val.txt, in rows of T without overlap, in nats per character.
"""

from ml_collections import ConfigDict

ARGUMENTS = ("", "cpu")


def get_config(arg: str = "") -> ConfigDict:
  """arg: "" or "cpu"."""
  if arg not in ARGUMENTS:
    raise ValueError(f"configs/shakespeare_char.py:{arg}: accepted arguments are '' and 'cpu'")
  config = ConfigDict(
    dict(
      tokenizer="runs/shakespeare.model",
      task="causal",
      data=dict(name="text", path="train.txt", validation="val.txt", unit="file"),
      model=dict(name="gpt2-tiny", num_layers=6, model_dim=384, num_heads=6, ffn_dim=1024, dropout_rate=0.2),
      optimizer=dict(
        name="adamw", learning_rate=1e-3, schedule="cosine", final_rate=0.1, warmup_steps=100, weight_decay=0.1, b2=0.99
      ),
      seq_len=256,
      batch_size=64,
      total_steps=5000,
      eval_every=250,
      evaluators=dict(validation=dict(name="likelihood", split="validation")),
    )
  )
  if arg == "cpu":
    config.model = dict(name="gpt2-tiny", num_layers=4, model_dim=128, num_heads=4, ffn_dim=344)
    config.optimizer = dict(name="muon", learning_rate=0.012, adam_learning_rate=0.016, schedule="linear", weight_decay=0.05)
    config.scan_unroll = 4
    config.seq_len, config.batch_size, config.total_steps, config.eval_every = 64, 12, 1000, 500
  return config
