"""Figures of compiled programs against figures by hand: trips, FLOPs, what collectives send, and the agreed method's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from lm import chips
from lm.preflight import collectives, measure, memory
from lm.preflight.hlo import Instruction, Module

FOLDER = Path(__file__).parent
MESH = {"data": 2, "fsdp": 2}  # of decoder.hlo

LOOP = """HloModule loop, num_partitions=1

%fused (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %less = pred[] compare(%a, %b), direction={direction}
}}

%condition (c: (s32[], f32[4,4])) -> pred[] {{
  %c = (s32[], f32[4,4]) parameter(0)
  %counter = s32[] get-tuple-element(%c), index=0
  %limit = s32[] constant({limit})
  ROOT %fusion = pred[] fusion(%counter, %limit), kind=kLoop, calls=%fused
}}

%body (p: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {{
  %p = (s32[], f32[4,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %x = f32[4,4]{{1,0}} get-tuple-element(%p), index=1
  %next = s32[] add(%i, %one)
  %after = s32[] add(%one, %next)
  %dot = f32[4,4]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, metadata={{op_name="a/dot"}}
  ROOT %out = (s32[], f32[4,4]) tuple({step}, %dot)
}}

ENTRY %main (arg: f32[4,4]) -> f32[4,4] {{
  %arg = f32[4,4]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,4]) tuple(%zero, %arg)
  %while = (s32[], /*index=1*/f32[4,4]) while(%start), condition=%condition, body=%body{known}
  ROOT %result = f32[4,4]{{1,0}} get-tuple-element(%while), index=1
}}
"""


def compiled(function, *shapes, mesh=None, spec=None):
  place = jax.NamedSharding(mesh, spec) if mesh else None
  return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in shapes)).compile()


def decoder():
  return measure.read((FOLDER / "decoder.hlo").read_text(), MESH, chips.V5E)


@pytest.mark.parametrize(
  ("direction", "limit", "step", "known", "trips"),
  [
    ("LT", 7, "%next", "", 7),
    ("LE", 7, "%next", "", 8),
    ("LT", 7, "%after", "", 4),  # two additions of 1
    ("LT", 7, "%next", ', backend_config={"known_trip_count":{"n":"5"}}', 5),
  ],
)
def test_a_loop_runs_as_often_as_its_counter_says(direction, limit, step, known, trips):
  cost = measure.read(LOOP.format(direction=direction, limit=limit, step=step, known=known), {"data": 1}, None)
  assert [loop["trips"] for loop in cost.loops] == [trips]
  assert cost.totals["flops", "matmul"] == trips * 2 * 4 * 4 * 4
  assert measure.f32_matmuls(cost) == [{"op_name": "a/dot", "flops": trips * 128}]
  assert not cost.module.unknown_trips


def test_a_loop_whose_trips_are_not_known_counts_once_and_is_named():
  cost = measure.read(LOOP.format(direction="LT", limit=7, step="%i", known=""), {"data": 1}, None)
  assert cost.totals["flops", "matmul"] == 128
  assert list(cost.module.unknown_trips) == ["while"]


def test_products_in_nested_scans_count_once_per_trip():
  def program(x_MK, w_LKK):
    layer = lambda x, w: (jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, None, length=3)[0], None)
    return jax.lax.scan(layer, x_MK, w_LKK)[0]

  cost = measure.read(compiled(program, (16, 32), (5, 32, 32)).as_text(), {"data": 1}, None)
  assert cost.totals["flops", "matmul"] == 5 * 3 * 2 * 16 * 32 * 32
  assert sorted(loop["runs"] for loop in cost.loops) == [5, 15]


def test_what_collectives_send_by_hand():
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)

  def program(x):
    summed = jax.lax.psum(x, "data")
    gathered = jax.lax.all_gather(x, "tensor")
    moved = jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)])
    return summed[None] + gathered + moved[None]

  spec = P("data", "tensor")
  body = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=P(None, "data", "tensor"), check_vma=False)
  cost = measure.read(compiled(body, (16, 8), mesh=mesh, spec=spec).as_text(), dict(mesh.shape), None)
  size = 4 * 4 * 4  # of a device's part, [4, 4] fp32
  found = {(each["kind"], each["axes"]): (each["runs"], each["sent_bytes"]) for each in measure.collectives(cost)}
  assert found == {
    ("all-reduce", "data"): (1, 2 * size * 3 // 4),
    ("all-gather", "tensor"): (1, size),
    ("collective-permute", "data"): (1, size),
  }


@pytest.mark.parametrize(
  ("groups", "expected"),
  [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,3,1,2) {'b'}, x", [[0, 3], [1, 2]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
    ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
  ],
)
def test_groups_are_read_in_every_form(groups, expected):
  assert collectives.groups_of(Instruction("x", "f32[2]", "all-reduce", "", groups), 4).tolist() == expected


def test_axes_are_those_along_which_a_group_differs():
  axes = lambda groups: collectives.axes_of(np.array(groups), {"data": 2, "fsdp": 1, "tensor": 2})
  assert axes([[0, 1], [2, 3]]) == "tensor"
  assert axes([[0, 2], [1, 3]]) == "data"
  assert axes([[0, 1, 2, 3]]) == "data+tensor"
  assert axes([[0], [1]]) == ""


def test_agreed_figures_of_a_stored_program():
  # Three layers of a decoder with splash attention and full recomputation, sharded over four v5e; figures of the agreed script.
  found = json.loads(json.dumps(measure.agreed(decoder(), chips.V5E, "v5e:2x2")))
  expected = json.loads((FOLDER / "decoder.json").read_text())
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value), name


def test_flops_of_a_stored_program_by_hand():
  # Per device 2 rows of 512 tokens, D 256, H C 256, F 512, V 1024. Full recomputation does without the last product.
  cost, tokens = decoder(), 2 * 512
  layer, last, head = 4 * 256 * 256 + 2 * 256 * 512, 256 * 512, 256 * 1024
  assert cost.totals["flops", "matmul"] == 2 * tokens * (3 * (4 * layer - last) + 3 * head)
  product = (
    2 * (2 * 2) * 512 * 512 * 128
  )  # of all heads, with the scores: 2 forward, twice; 4 for keys and values; 3 for queries
  assert cost.totals["flops", "kernel whole"] == 3 * (2 * 2 + 4 + 3) * product
  assert memory.kept_for_backward(cost.module) == 3 * tokens * 256 * 2  # the bf16 input of every layer


def test_collectives_of_a_stored_program_are_along_their_axes():
  found = {(each["kind"], each["axes"]) for each in measure.collectives(decoder())}
  assert ("all-gather", "fsdp") in found
  assert ("reduce-scatter", "fsdp") in found
  assert ("all-reduce", "data") in found
  assert not any(kind == "all-gather" and axes != "fsdp" for kind, axes in found)


def test_the_shared_script_gives_the_same_figures():
  script = os.environ.get("AOT_MEASURE")
  if not script:
    pytest.skip("needs AOT_MEASURE, the path of the agreed script")
  text = FOLDER / "decoder.hlo"
  out = subprocess.run([sys.executable, script, str(text), "v5e:2x2"], check=True, capture_output=True, text=True).stdout
  assert json.loads(out) == json.loads((FOLDER / "decoder.json").read_text())


def test_a_chip_is_found_by_what_jax_calls_it():
  assert chips.find("TPU v5 lite") is chips.V5E
  assert chips.find("TPU v5") is chips.V5P
  assert chips.find("TPU v6 lite") is chips.V6E
  assert chips.find("cpu") is None
  assert chips.V5E.clock == pytest.approx(1.5e9, rel=0.01)


def test_text_that_ends_early_is_refused():
  with pytest.raises(ValueError, match="unbalanced"):
    Module("ENTRY %main (x: f32[2]) -> f32[2] {\n  %x = f32[2] add(%a, (%b\n}")
