"""Both methods over three seeds.

python -m tools.sweep experiments/squad/sweep.py --config.data_dir=DATA --workdir=runs/squad
"""

CONFIG = "experiments/squad/squad.py"


def get_sweep() -> dict:
  """Configs, seeds and the metrics to compare; the first config is the one the others are compared with."""
  return dict(
    configs=[f"{CONFIG}:full", f"{CONFIG}:lora"],
    seeds=[0, 1, 2],
    metrics=["eval/test/exact", "eval/test/f1"],
    baselines=["baseline/test_sentence_exact", "baseline/test_sentence_f1"],
  )
