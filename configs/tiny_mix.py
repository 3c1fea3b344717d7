"""Two tasks with two heads over one backbone: masked language modelling and module classification, mixed by rows.

python -m lm.main --config=configs/tiny_mix.py --workdir=runs/tiny_mix

Three rows of every four are packed documents for the masked task, one is a docstring with its module. Loss and metrics
are per stream: train/docs/loss, train/module/accuracy, eval/module_validation/macro_f1. Weights may change on the way:
--config.streams.docs.weight="((0, 3), ('50%', 1))".
"""

from configs import tiny_mlm


def get_config(arg: str = ""):
  """arg: "" or "smoke"."""
  config = tiny_mlm.get_config(arg)
  config.streams = dict(
    docs=dict(task=config.task, data="pydocs", weight=3.0),
    module=dict(task="classify", data=dict(name="pydocs", label="module"), weight=1.0),
  )
  del config.task, config.data
  return config
