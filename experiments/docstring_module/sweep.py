"""full.py against scratch.py over three seeds.

python -m tools.sweep experiments/docstring_module/sweep.py --workdir=runs/docstring_module
"""

FOLDER = "experiments/docstring_module"


def get_sweep() -> dict:
  """Configs, seeds and the metrics to compare; the first config is the one the others are compared with."""
  return dict(
    configs=[f"{FOLDER}/full.py", f"{FOLDER}/scratch.py"],
    seeds=[0, 1, 2],
    metrics=["eval/test/accuracy", "eval/test/macro_f1"],
    baselines=["baseline/test_majority_accuracy", "baseline/test_majority_macro_f1"],
  )
