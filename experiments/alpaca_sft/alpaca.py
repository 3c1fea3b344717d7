"""Instructions of Alpaca (Taori et al. 2023) on the causal model of wikitext-2 pretrained here, with the loss on the answers.

python -m lm.main --config=experiments/alpaca_sft/alpaca.py:full --config.data_dir=DATA --workdir=runs/alpaca/full-s0

DATA has alpaca/alpaca_data_2000.json, {instruction, input, output}; validation and test are cut by the hash of the instruction.
The base is runs/wikitext_causal of experiments/pretrain, with its tokenizer.
"""

from ml_collections import ConfigDict

from configs import finetune

# Learning rate by method, with its options.
METHODS = {"full": (1e-3, dict(name="full")), "lora": (3e-3, dict(name="lora", rank=8, alpha=16.0))}


def get_config(arg: str = "full") -> ConfigDict:
  """arg: a method."""
  if arg not in METHODS:
    raise ValueError(f"experiments/alpaca_sft/alpaca.py:{arg}: accepted are {', '.join(METHODS)}")
  config = finetune.get_config("sft")
  config.init_from = "runs/wikitext_causal"
  config.data = dict(name="chat", path="alpaca/alpaca_data_2000.json")
  config.optimizer.learning_rate, config.peft = METHODS[arg]
  config.seq_len, config.eval_every = 256, "34%"
  return config
