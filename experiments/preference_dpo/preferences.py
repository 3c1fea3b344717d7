"""300 preferred and rejected answers on the model that learned instructions: DPO (Rafailov et al. 2023) and two relatives.

python -m lm.main --config=experiments/preference_dpo/preferences.py:sigmoid --config.data_dir=DATA --workdir=runs/sigmoid

DATA has preference/dpo_en_demo.json, {conversations, chosen, rejected}; validation and test are cut by the hash of the prompt.
The base is runs/alpaca/full-s0 of experiments/alpaca_sft, and the frozen reference of `sigmoid` and `ipo`.
"""

from ml_collections import ConfigDict

from configs import finetune

KINDS = ("sigmoid", "sigmoid_norm", "ipo", "simpo")


def get_config(arg: str = "sigmoid") -> ConfigDict:
  """arg: the loss, task.kind."""
  if arg not in KINDS:
    raise ValueError(f"experiments/preference_dpo/preferences.py:{arg}: accepted are {', '.join(KINDS)}")
  config = finetune.get_config("dpo")
  config.init_from = "runs/alpaca/full-s0"
  del config.task
  config.task = dict(name="dpo", kind=arg)
  config.data = dict(name="chat", path="preference/dpo_en_demo.json")
  config.total_steps, config.eval_every = "3 epochs", "34%"
  return config
