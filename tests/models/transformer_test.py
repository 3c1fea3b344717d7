"""What must hold for every preset and mechanism: causality, isolation of segments, cached decoding, published sizes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import plug, tree
from lm.config import Plug
from lm.models.attention import attend
from lm.models.cache import make_cache
from lm.models.head_spec import HeadSpec
from lm.models.kernel import Extra, Rows
from lm.models.layers import Dropout
from lm.models.mask import in_row
from lm.models.model import Model
from tests.conftest import FAMILIES, shrunk

CAUSAL = [name for name in FAMILIES if plug.preset(name).causal]
# Scalars in the released checkpoints without heads, counted from their published shapes; tests/parity asks transformers.
PUBLISHED = {
  "gpt2": 124_439_808,
  "gpt2-medium": 354_823_168,
  "gpt2-large": 774_030_080,
  "gpt2-xl": 1_557_611_200,
  "bert-base-uncased": 108_891_648,
  "bert-large-uncased": 334_092_288,
  "bert-base-cased": 107_719_680,
  "bert-large-cased": 332_529_664,
  "bert-base-chinese": 101_677_056,
  "minilm-l6-h384": 22_565_376,
  "roberta-base": 124_055_040,
  "roberta-large": 354_310_144,
  "modernbert-base": 149_014_272,
  "modernbert-large": 394_781_696,
  "tinyllama-1.1b": 1_100_048_384 - 32_000 * 2048,
  "llama-2-7b": 6_738_415_616 - 32_000 * 4096,
  "llama-3-8b": 8_030_261_248 - 128_256 * 4096,
  "llama-3-70b": 70_553_706_496 - 128_256 * 8192,
  "llama-3.2-1b": 1_235_814_400,
  "llama-3.2-3b": 3_212_749_824,
  "llama-3.1-8b": 8_030_261_248 - 128_256 * 4096,
  "llama-3.1-70b": 70_553_706_496 - 128_256 * 8192,
  "qwen3-0.6b": 596_049_920,
  "qwen3-1.7b": 1_720_574_976,
  "qwen3-4b": 4_022_468_096,
  "qwen3-8b": 8_190_735_360 - 151_936 * 4096,
  "qwen3-14b": 14_768_307_200 - 151_936 * 5120,
  "qwen3-32b": 32_762_123_264 - 151_936 * 5120,
  "qwen3-30b-a3b": 30_532_122_624 - 151_936 * 2048,
  "qwen2.5-0.5b": 494_032_768,
  "qwen2.5-1.5b": 1_543_714_304,
  "gemma-3-1b": 999_885_952,
  "gemma-3-4b": 3_880_263_168,
  "gemma-3-12b": 11_766_034_176,
  "gemma-3-27b": 27_009_346_304,
  "gemma-2-2b": 2_614_341_888,
  "mixtral-8x7b": 46_702_792_704 - 32_000 * 4096,
}


def make_model(name, **changes):
  options = shrunk(name, ffn_dim=48, max_len=64, vocab_size=50)
  cfg = dataclasses.replace(plug.make("model", plug.parse_plug("model", options)), **changes)
  head = HeadSpec("lm" if cfg.causal else "mlm")
  return Model(cfg, ((head.kind, head),))


def init(model):
  return jax.jit(lambda rng: nn.unbox(model.init(rng)))(jax.random.key(0))


def output(model, params, inputs, **options):
  return jax.jit(model.hidden)(params, inputs, **options)


def hidden(model, params, inputs, **options):
  return output(model, params, inputs, **options).hidden_BTD


def make_inputs(tokens, segments=None):
  tokens_BT = jnp.asarray(tokens, jnp.int32)
  B, T = tokens_BT.shape
  positions_BT = jnp.broadcast_to(jnp.arange(T)[None, :], (B, T))
  segment_ids_BT = jnp.ones((B, T), jnp.int32) if segments is None else jnp.asarray(segments, jnp.int32)
  return {"tokens": tokens_BT, "segment_ids": segment_ids_BT, "positions": positions_BT, "row": jnp.arange(B)}


def random_tokens(*shape):
  return np.random.default_rng(0).integers(0, 50, shape)


def test_every_preset_of_a_released_model_has_its_size_below():
  assert {name for name in plug.names("model") if not name.endswith("-tiny")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name):
  model = Model(plug.make("model", Plug(name)), ())
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0)))
  assert tree.count(params) == PUBLISHED[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_only_allowed_positions_have_a_gradient(name):
  model = make_model(name, dropout_rate=0.0)
  params = init(model)
  inputs = make_inputs(random_tokens(1, 8))

  def reads(perturb):
    return model.hidden(params, inputs, perturb=perturb)[0][0, 3].sum()

  touched = np.abs(jax.jit(jax.grad(reads))(jnp.zeros((1, 8, 32)))).sum((0, 2)) > 0
  expected = np.arange(8) <= 3 if model.cfg.causal else np.ones(8, bool)
  np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_documents_equal_separate_ones(name):
  model = make_model(name, dropout_rate=0.0)
  params = init(model)
  first, second = random_tokens(2, 6)
  packed = make_inputs([[*first, *second[:4], 0, 0]], [[1] * 6 + [2] * 4 + [0] * 2])
  packed["positions"] = jnp.asarray([[*range(6), *range(4), 0, 0]])
  h_BTD = hidden(model, params, packed)
  one = hidden(model, params, make_inputs([first]))
  two = hidden(model, params, make_inputs([second[:4]]))
  np.testing.assert_allclose(h_BTD[0, :6], one[0], atol=1e-5)
  np.testing.assert_allclose(h_BTD[0, 6:10], two[0], atol=1e-5)


@pytest.mark.parametrize(
  ("name", "changes"),
  [*((name, {}) for name in CAUSAL), ("gpt2", {"num_kv_heads": 2}), ("gpt2", {"gated": True, "activation": "silu"})],
  ids=str,
)
def test_cached_decoding_equals_the_full_forward(name, changes):
  model = make_model(name, **changes)
  params = init(model)
  inputs = make_inputs(random_tokens(2, 9))
  full = hidden(model, params, inputs)
  cache, parts = make_cache(model.cfg, 2, 12, jnp.float32), []
  for start, stop in ((0, 5), (5, 6), (6, 9)):
    part = {key: value[:, start:stop] if value.ndim == 2 else value for key, value in inputs.items()}
    out = output(model, params, part, cache=cache)
    cache = out.cache
    parts.append(out.hidden_BTD)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-5)
  assert int(cache.length) == 9


@pytest.mark.parametrize("num_extra", [0, 3])
def test_attention_equals_a_float64_loop(num_extra):
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(1, 5, 4, 8)), rng.normal(size=(1, 5, 2, 8)), rng.normal(size=(1, 5, 2, 8))
  segments = np.array([[1, 1, 2, 2, 2]], np.int32)
  ek, ev = rng.normal(size=(num_extra, 2, 8)), rng.normal(size=(num_extra, 2, 8))
  q32, k32, v32, *extra = (jnp.asarray(x, jnp.float32) for x in (q, k, v, ek, ev))
  mask = in_row(jnp.asarray(segments), causal=True)
  got = attend(Rows(q32, k32, v32, mask, Extra(*extra) if num_extra else None))
  for t in range(5):
    for head in range(4):
      seen = [s for s in range(t + 1) if segments[0, s] == segments[0, t]]
      keys, values = (np.concatenate([more[:, head // 2], x[0, seen, head // 2]]) for more, x in ((ek, k), (ev, v)))
      scores = keys @ q[0, t, head] / np.sqrt(8)
      weights = np.exp(scores) / np.exp(scores).sum()
      expected = weights @ values
      np.testing.assert_allclose(got[0, t, head], expected, atol=1e-5)


def test_dropout_noise_belongs_to_the_row():
  model = make_model("bert-tiny", dropout_rate=0.5)
  params = init(model)
  inputs = make_inputs(random_tokens(4, 6))
  whole = hidden(model, params, inputs, rng=jax.random.key(1))
  part = hidden(model, params, {key: value[2:] for key, value in inputs.items()}, rng=jax.random.key(1))
  other = hidden(model, params, inputs, rng=jax.random.key(2))
  np.testing.assert_allclose(part, whole[2:], atol=1e-6)
  assert np.abs(np.asarray(whole - other)).max() > 0.1


def test_dropout_keeps_the_mean():
  ones = jnp.ones((4, 2000))
  dropped = Dropout(0.2).apply({}, ones, jnp.arange(4), rngs={"dropout": jax.random.key(0)})
  assert np.unique(dropped) == pytest.approx([0, 1 / 0.8])
  assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
  assert (Dropout(0.2).apply({}, ones, jnp.arange(4)) == ones).all()


def test_every_layer_drops_other_channels():
  model = make_model("gpt2", dropout_rate=0.5)
  params = jax.tree.map(jnp.zeros_like, init(model))
  ffn, norm = params["backbone"]["blocks"]["ffn"]["down"], params["backbone"]["final_norm"]
  ffn["bias"], norm["scale"] = jnp.ones_like(ffn["bias"]), jnp.ones_like(norm["scale"])
  # Each of the two layers adds 0 or 2: only if they drop apart, some channel gets one of both.
  h_BTD = hidden(model, params, make_inputs(random_tokens(1, 4)), rng=jax.random.key(0))
  assert len(np.unique(np.round(h_BTD[0, 0], 4))) == 3


def test_a_prefix_is_seen_by_its_own_segment_only():
  segments, prefix = jnp.asarray([[1, 1, 1, 2, 2, 0]]), jnp.asarray([[1, 1, 0, 1, 0, 0]])
  seen = np.asarray(in_row(segments, True, prefix).as_array())[0].astype(int)
  assert seen.tolist() == [
    [1, 1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [0, 0, 0, 1, 0, 0],
    [0, 0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0, 1],
  ]


def test_hidden_states_of_a_prefix_depend_on_all_of_it_and_on_nothing_behind():
  model = make_model("llama-3.2-1b", dropout_rate=0.0)
  params = init(model)
  inputs = {**make_inputs(random_tokens(1, 8)), "prefix": jnp.asarray([[1, 1, 1, 0, 0, 0, 0, 0]])}

  def touched(read):
    reads = lambda perturb: model.hidden(params, inputs, perturb=perturb)[0][0, read].sum()
    return (np.abs(jax.jit(jax.grad(reads))(jnp.zeros((1, 8, 32)))).sum((0, 2)) > 0).nonzero()[0].tolist()

  assert touched(0) == [0, 1, 2]
  assert touched(4) == [0, 1, 2, 3, 4]
