"""DoRA (Liu et al. 2024): LoRA with lora_magnitude_vector [outputs] beside, the norms that kernels are given."""

from lm.interop.adapters import lora
from lm.interop.adapters.modules import Beside, Stored

FORMAT = Beside(
  method="dora", peft_type="LORA", marks={"use_dora": True}, needed=("r", "lora_alpha"), only=lora.ONLY | {"use_dora": (True,)},
  targets={"targets": {**lora.PRODUCT, "magnitude": Stored("lora_magnitude_vector", ("", "outputs"), norms=True, vector=True)}},
  options=lora.options, scale=lora.scale, scaled="b",
  finish=lambda trained, modules: lora.finish(trained, modules) | {"use_dora": True},
)  # fmt: skip
