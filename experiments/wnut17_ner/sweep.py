"""Both schemes over three seeds.

python -m tools.sweep experiments/wnut17_ner/sweep.py --config.data_dir=DATA --workdir=runs/wnut17
"""

CONFIG = "experiments/wnut17_ner/wnut17.py"


def get_sweep() -> dict:
  """Configs, seeds and the metrics to compare; the first config is the one the others are compared with."""
  return dict(
    configs=[f"{CONFIG}:bio", f"{CONFIG}:bioes"],
    seeds=[0, 1, 2],
    metrics=["eval/test/f1", "eval/test/precision", "eval/test/recall"],
    baselines=["baseline/test_all_o_f1"],
  )
