"""A config.json that says what this code does not know is one line: the file, the setting, its value, what is accepted."""

import dataclasses
import json
import re

import pytest

from lm.config import ConfigError
from lm.interop import settings
from tests.interop.directories import GOLDEN, GONE, change

ROPE = {"rope_theta": 10_000.0}
KNOWN = "known are bert, camembert, gemma2, gemma3, gemma3_text, gpt2, llama, mixtral, modernbert, qwen2, qwen3"
BAD = [
  ("llama-untied", {"model_type": "mamba"}, f"model_type='mamba' is unknown; {KNOWN}"),
  ("llama-untied", {"model_type": GONE}, f"model_type=None is unknown; {KNOWN}"),
  ("llama-untied", {"model_type": ["llama"]}, "model_type=['llama'] is unknown"),
  ("llama-untied", {"hidden_size": GONE}, "hidden_size is not set"),
  ("llama-untied", {"vocab_size": None}, "vocab_size is not set"),
  ("llama-untied", {"hidden_size": "16"}, "hidden_size: expected an integer, got '16'"),
  ("llama-untied", {"num_hidden_layers": [2]}, "num_hidden_layers: expected an integer, got [2]"),
  ("llama-untied", {"tie_word_embeddings": "no"}, "tie_word_embeddings: expected true or false, got 'no'"),
  ("llama-untied", {"rms_norm_eps": "1e-5"}, "rms_norm_eps: expected a number, got '1e-5'"),
  ("llama-untied", {"hidden_act": "mish"}, "hidden_act='mish' is unknown; known are gelu, gelu_python"),
  ("llama-untied", {"hidden_act": ["silu"]}, "hidden_act: expected text, got ['silu']"),
  ("llama-untied", {"attention_bias": True}, "attention_bias=True has no counterpart here; accepted are False"),
  ("llama-untied", {"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 4.0}}, "rope_type='yarn' has no counterpart"),
  ("llama-untied", {"rope_parameters": GONE, "rope_scaling": {"type": "yarn"}}, "rope_type='yarn' has no counterpart"),
  ("llama-untied", {"rope_parameters": ROPE | {"rope_type": "linear"}}, "factor is not set"),
  (
    "llama-untied",
    {"rope_parameters": ROPE | {"rope_type": "llama3", "factor": 8}},
    "low_freq_factor and high_freq_factor must",
  ),
  ("llama-untied", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta of rotary positions: expected a number"),
  ("llama-untied", {"rope_parameters": "linear"}, "rope_parameters='linear': expected an object"),
  ("llama-untied", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5: llama rotates all"),
  ("gemma2", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}, "rope_type='linear': stretches local layers"),
  ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 has no counterpart here"),
  ("roberta-mlm", {"hidden_act": "relu"}, "hidden_act='relu' has no counterpart here"),
  ("modernbert-mlm", {"hidden_activation": "silu"}, "hidden_activation='silu' has no counterpart here"),
  ("bert-mlm", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' has no counterpart here"),
  ("bert-mlm", {"is_decoder": True}, "is_decoder=True has no counterpart here"),
  ("roberta-mlm", {"pad_token_id": 0}, "pad_token_id=0 has no counterpart here; accepted are 1"),
  ("mixtral", {"sliding_window": 4096}, "sliding_window=4096 has no counterpart here; accepted are None"),
  ("qwen2", {"use_sliding_window": True}, "use_sliding_window=True has no counterpart here"),
  ("qwen3-moe", {"mlp_only_layers": [0]}, "mlp_only_layers=(0,) has no counterpart here"),
  ("gpt2-lm", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True has no counterpart here"),
  ("gemma2", {"layer_types": ["chunked"] * 4}, "expected 3 of full_attention, sliding_attention"),
  ("gemma2", {"layer_types": "full_attention"}, "layer_types='full_attention': expected 3 of"),
  ("gemma2", {"sliding_window": None}, "sliding_window is not set"),
  ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0.0: must be above 0"),
  ("gemma3", {"rope_parameters": {"full_attention": ROPE}}, "rope_parameters: sliding_attention is not set"),
  (
    "modernbert-mlm",
    {"layer_types": GONE, "global_attn_every_n_layers": 0},
    "global_attn_every_n_layers=0: must be at least 1",
  ),
  (
    "modernbert-mean",
    {"classifier_pooling": "max"},
    "classifier_pooling='max' has no counterpart here; accepted are 'cls', 'mean'",
  ),
]


@pytest.mark.parametrize(("name", "changes", "words"), BAD, ids=[f"{name}-{words}"[:60] for name, _, words in BAD])
def test_what_has_no_counterpart_is_one_line(name, changes, words, tmp_path):
  with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path))}.*config.json: .*{re.escape(words)}") as caught:
    settings.read(change(tmp_path / "changed", name, **changes))
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"{a", b"", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"[1]", b"3"])
def test_a_config_that_is_no_json_object_is_one_line(data, tmp_path):
  (tmp_path / "config.json").write_bytes(data)
  with pytest.raises(ConfigError, match="config.json: (not JSON|expected a JSON object)") as caught:
    settings.read(tmp_path)
  assert "\n" not in str(caught.value)


def test_no_config_at_all_says_what_is_accepted(tmp_path):
  with pytest.raises(ConfigError, match="no config.json; accepted is a Hugging Face directory or the workdir of a run"):
    settings.read(tmp_path)


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_what_is_written_is_read_as_the_same_model(name, tmp_path):
  family, cfg, _ = settings.read(GOLDEN / name)
  assert settings.nearest(cfg).model_type == family.model_type
  (tmp_path / "config.json").write_text(json.dumps(settings.write(family, cfg)))
  assert settings.read(tmp_path)[1] == cfg


@pytest.mark.parametrize(("name", "settings_of_theirs"), [
  ("gpt2-lm", ("resid_pdrop", "embd_pdrop", "attn_pdrop")),
  ("bert-mlm", ("hidden_dropout_prob", "attention_probs_dropout_prob")),
])  # fmt: skip
def test_a_dropout_rate_is_all_of_theirs(name, settings_of_theirs):
  """A model without dropout does not get theirs where it is trained on: they have 0.1 where nothing is said."""
  family, cfg, _ = settings.read(GOLDEN / name)
  written = settings.write(family, dataclasses.replace(cfg, dropout_rate=0.25))
  assert {written[each] for each in settings_of_theirs} == {0.25}


@pytest.mark.parametrize(("name", "base"), [("llama-untied", 10_000.0), ("qwen2", 10_000.0), ("mixtral", 1_000_000.0)])
def test_a_rotary_base_that_is_not_said_is_that_of_transformers(name, base, tmp_path):
  """Llama 2's files do not say theirs; transformers' classes have a default each (`default_theta`)."""
  for i, gone in enumerate(({"rope_parameters": GONE}, {"rope_parameters": {"rope_type": "default"}})):
    found = settings.read(change(tmp_path / f"{i}", name, rope_theta=GONE, rope_scaling=GONE, **gone))
    assert found[1].rope_base == base


def test_another_share_of_rotating_channels_has_no_counterpart():
  cfg = dataclasses.replace(settings.read(GOLDEN / "llama-untied")[1], rope_share=0.4)
  with pytest.raises(ConfigError, match="has no .*rope_share=0.4"):
    settings.nearest(cfg)
