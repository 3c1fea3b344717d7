"""AdaLoRA (Zhang et al. 2023): lora_A [rank, inputs], lora_E [rank, 1] and lora_B [outputs, rank] of what pruning left.

`rank_pattern` says of every module which of its `init_r` triplets those are; the scale is by `init_r`, whatever is left.
"""

import numpy as np

from lm.interop.adapters import lora
from lm.interop.adapters.modules import Beside, Stored

ROUNDING = 1e-5  # which peft adds to the rank that it divides by


def options(settings, rank):
  """What is pruned already is filled up with zeros."""
  del rank
  rank = settings["init_r"]
  target = min(settings.get("target_r") or rank, rank)
  return {"initial_rank": rank, "target_rank": target, "alpha": float(settings["lora_alpha"] or rank)}


def scale(settings, module, rank):
  """Of all products, whatever is left of them."""
  del module, rank
  return (settings["lora_alpha"] or settings["init_r"]) / (settings["init_r"] + ROUNDING)


def finish(trained, modules):
  """Triplets whose value is zero are left out, but one where all are; parts of a fused module have theirs added up."""
  method, total = trained.method, max(trained.total_steps, 1)
  until = method.prune_until if isinstance(method.prune_until, int) else total
  begins = method.prune_from if isinstance(method.prune_from, int) else 0
  init_r = max(leaves["lambda"].shape[1] for leaves in modules.values())
  pattern, alpha = {}, method.scale * init_r
  for module, leaves in modules.items():
    kept = np.pad(leaves["lambda"][0] != 0, (0, init_r - leaves["lambda"].shape[1]))
    kept[0] |= not kept.any()
    rows = np.flatnonzero(kept)
    leaves["a"], leaves["b"] = leaves["a"][:, rows], leaves["b"][rows]
    leaves["lambda"] = leaves["lambda"][:, rows] * np.float32((init_r + ROUNDING) / init_r)
    pattern[f"{module}.lora_E"] = kept.tolist()
  settings = {"init_r": init_r, "target_r": min(method.target_rank, init_r), "lora_alpha": alpha, "rank_pattern": pattern}
  settings |= {"tinit": begins, "tfinal": total - until, "total_step": total, "deltaT": method.prune_every}
  return settings | {"beta1": method.beta1, "beta2": method.beta2, "orth_reg_weight": method.orthogonality}


FORMAT = Beside(
  method="adalora", peft_type="ADALORA", needed=("init_r",), only=lora.ONLY,
  targets={"targets": {
    "a": Stored("lora_A", ("inputs", "rank")),
    "lambda": Stored("lora_E", ("", "rank")),
    "b": Stored("lora_B", ("rank", "outputs")),
  }},
  options=options, scale=scale, scaled="lambda", rank="initial_rank", finish=finish,
)  # fmt: skip
