"""Which recipe is compiled for which TPU slice."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Case:
  """One compilation. topology: as `tools.aot` takes it, chips per dim of a slice. settings: 'NAME=VALUE' of the config."""

  config: str
  topology: str
  num_slices: int = 1
  settings: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    """llama2_7b:v5e_4x4, the config's file and argument."""
    return self.config.removeprefix("configs/").replace(".py", "")

  @property
  def num_devices(self) -> int:
    """Chips of all slices."""
    return self.num_slices * math.prod(map(int, self.topology.partition(":")[2].split("x")))


CASES = (
  Case("configs/bert_base.py:512", "v5e:2x4"),
  Case("configs/bert_base.py:128", "v5e:2x4"),
  Case("configs/bert_base.py:phase2", "v5e:2x4"),
  Case("configs/modernbert_base.py:1024", "v5e:2x4"),
  Case("configs/modernbert_base.py:long", "v5e:2x4"),
  Case("configs/gpt2_small.py:fineweb", "v5e:2x2"),
  Case("configs/gpt2_small.py:owt", "v5e:2x2"),
  Case("configs/llama_1b.py:v5e_4x4", "v5e:4x4"),
  Case("configs/llama_1b.py:tinyllama", "v5e:4x4"),
  Case("configs/llama2_7b.py:v5e_4x4", "v5e:4x4"),
  Case("configs/llama2_7b.py:v5e_16x16", "v5e:16x16"),
  Case("configs/llama3_8b.py:v5p_2x2x4", "v5p:2x2x4"),
  Case("configs/llama3_8b.py:v6e_4x4", "v6e:4x4"),
  Case("configs/llama3_8b.py:lora", "v5e:2x4"),
  Case("configs/mixtral_8x7b.py:v5p_2x2x4", "v5p:2x2x4"),
  Case("configs/llama3_70b.py:v5p_8x8x8", "v5p:8x8x8"),
  Case("configs/llama3_70b.py:v6e_16x16_x2", "v6e:16x16", num_slices=2),
)
