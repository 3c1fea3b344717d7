"""Hugging Face directories for tests: a golden one with changes, or a new one of random values with the bytes tokenizer."""

import dataclasses
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from lm import plug
from lm.config import Plug
from lm.data.tokenizer import Bytes
from lm.models.head_spec import HeadSpec
from lm.models.model import Model
from lm.pretrained import Pretrained, save_pretrained
from lm.tasks.classify import Classify
from tests.conftest import LABELS, SIZES

GOLDEN = Path(__file__).parent.parent / "golden" / "parity"
GONE = object()  # the value of a setting that is taken out


def change(folder: Path, name: str = "llama-untied", tensors=None, **settings) -> Path:
  """A copy of a golden directory. tensors: function of its tensors by name. settings: of its config.json."""
  shutil.copytree(GOLDEN / name, folder)
  path = folder / "config.json"
  values = json.loads(path.read_text()) | settings
  path.write_text(json.dumps({key: value for key, value in values.items() if value is not GONE}))
  if tensors:
    write_tensors(folder / "model.safetensors", tensors(load_file(folder / "model.safetensors")))
  return folder


def write_tensors(path: Path, tensors) -> None:
  """As one file."""
  save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata={"format": "pt"})


def make(folder: Path, preset: str, *kinds: str) -> Path:
  """A directory of a small random model. kinds: of its heads: lm, mlm, or classifier, or none for the backbone alone."""
  cfg = dataclasses.replace(plug.make("model", Plug(preset)), **SIZES, num_kv_heads=0, head_dim=0, vocab_size=261)
  labels = tuple(sorted(set(LABELS)))
  specs = {"lm": HeadSpec("lm"), "mlm": HeadSpec("mlm"), "classifier": HeadSpec("classifier", len(labels))}
  names = {"lm": "lm", "mlm": "mlm", "classifier": "classify"}
  heads = [(names[kind], specs[kind]) for kind in kinds] or [("classify", HeadSpec("classifier", 0))] * (cfg.pooler == "tanh")
  model = Model(cfg, tuple(heads))
  params = nn.unbox(jax.jit(model.init)(jax.random.key(7)))
  tasks = {"classify": Classify(labels=labels)} if "classifier" in kinds else {}
  tok = Bytes()
  save_pretrained(Pretrained(model, params, tok, tasks, {"pad_token_id": tok.pad_id, "eos_token_id": tok.eos_id}), folder)
  return folder
