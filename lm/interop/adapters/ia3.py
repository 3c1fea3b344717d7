"""(IA)^3 (Liu et al. 2022): ia3_l, [outputs, 1] of what is scaled behind a module, [1, inputs] of what is scaled before it."""

from lm.interop.adapters.modules import Beside, Stored

FORMAT = Beside(
  method="ia3", peft_type="IA3", group="ia3", rank="",
  targets={
    "targets": {"scale": Stored("ia3_l", ("", "outputs"), neutral=1.0)},
    "feedforward": {"scale": Stored("ia3_l", ("inputs", ""), neutral=1.0)},
  },
  subsets={"feedforward": "feedforward_modules"},
)  # fmt: skip
