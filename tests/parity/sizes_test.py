"""Every preset is the model that transformers builds from the config.json we would write; nothing is allocated."""

import flax.linen as nn
import jax
import pytest
import torch
import transformers

from lm import plug, tree
from lm.interop import settings
from lm.models.head_spec import HeadSpec
from lm.models.model import Model

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", [name for name in plug.names("model") if not name.endswith("-tiny")])
def test_transformers_counts_the_same_parameters(name):
  cfg = plug.preset(name)
  family = settings.nearest(cfg)
  kind = "lm" if cfg.causal else "mlm"
  written = settings.write(family, cfg) | {"pad_token_id": 1 if cfg.position_offset else 0}
  config = transformers.AutoConfig.for_model(**written)
  with torch.device("meta"):
    theirs = getattr(transformers, family.classes[kind])(config)
  theirs.tie_weights()
  model = Model(cfg, ((kind, HeadSpec(kind)),))
  ours = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  assert tree.count(ours) == sum(parameter.numel() for parameter in theirs.parameters())
