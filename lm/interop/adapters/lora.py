"""LoRA (Hu et al. 2021): lora_A [rank, inputs] and lora_B [outputs, rank]; any rank and scale per module."""

import re

from lm.interop.adapters.modules import Beside, Stored

PRODUCT = {"a": Stored("lora_A.weight", ("inputs", "rank")), "b": Stored("lora_B.weight", ("rank", "outputs"))}
# Of a LoraConfig, which others extend.
ONLY = {
  "bias": ("none",),
  # The other ways to begin change the base too.
  "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
  **dict.fromkeys(("use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "trainable_token_indices"), ()),
  **dict.fromkeys(("target_parameters", "alora_invocation_tokens", "arrow_config", "monteclora_config", "kasa_config"), ()),
}


def options(settings, rank):
  """The largest rank of all modules, those of others are filled up."""
  scaling = "alpha_over_sqrt_rank" if settings.get("use_rslora") else "alpha_over_rank"
  return {"rank": rank, "alpha": float(settings["lora_alpha"]), "scaling": scaling}


def scale(settings, module, rank):
  """Of a module's product: alpha / rank, or alpha / sqrt(rank)."""
  patterns = (settings.get("alpha_pattern") or {}).items()
  alpha = next((value for key, value in patterns if re.match(rf"(.*\.)?({key})$", module)), settings["lora_alpha"])
  return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def finish(trained, modules):
  """A module of several products has their ranks added up, and alpha with them."""
  of_module = {module: leaves["a"].shape[1] for module, leaves in modules.items()}
  rank, all_layers = min(of_module.values()), lambda module: re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(module))
  larger = {all_layers(module): r for module, r in of_module.items() if r != rank}
  return {
    "r": rank,
    "lora_alpha": trained.method.scale * rank,
    "rank_pattern": larger,
    "alpha_pattern": {module: trained.method.scale * r for module, r in larger.items()},
    "lora_dropout": 0.0,
  }


FORMAT = Beside(
  method="lora", peft_type="LORA", marks={"use_dora": False}, needed=("r", "lora_alpha"), only=ONLY,
  targets={"targets": PRODUCT}, options=options, scale=scale, scaled="b", finish=finish,
)  # fmt: skip
