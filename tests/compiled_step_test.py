"""What five compiled steps cost stays what it was, so that a change that makes them dearer is seen without a stopwatch."""

import json
from pathlib import Path

import jax
import pytest

from lm.preflight import measure
from lm.preflight.hlo import Module
from lm.preflight.memory import compile_step
from tests.conftest import make_run

STORED = Path(__file__).parent / "golden" / "compiled_steps.json"
STEPS = {
  "causal": dict(kind="causal"),
  "mlm": dict(kind="mlm"),
  "classify, lora": dict(kind="classify", peft="lora(rank=4)", length_buckets=(32, 64)),
  "causal, two at a time, remat": dict(kind="causal", tokens_per_device=256, remat="full"),
  "causal, fsdp 4 x tensor 2": dict(kind="causal", devices=8, mesh={"fsdp": 4, "tensor": 2}),
}
# How far figures may be off: other processors fuse a little otherwise. Of matmuls and of collectives none is lost or won.
TOLERANCES = {"matmul_flops": 1e-6, "peak_bytes": 0.03, "bytes_accessed": 0.1, "instructions": 0.1}


def figures(run) -> dict:
  step = compile_step(run.program, run.loader.shapes()[-1])
  cost = measure.read(step.text, dict(run.mesh.shape), None)
  analysis = step.compiled.cost_analysis()
  return {
    "matmul_flops": cost.sum("flops"),
    "peak_bytes": step.peak_bytes,
    "bytes_accessed": analysis["bytes accessed"],
    "instructions": sum(len(computation) for computation in Module(step.text).computations.values()),
    "collectives": {kind: round(runs) for kind, runs in sorted(cost.by("runs", 1).items())},
  }


def differences(found: dict, stored: dict) -> list[str]:
  """What is not as it was, in words."""
  far = lambda name: abs(found[name] - stored[name]) > TOLERANCES[name] * stored[name]
  lines = [f"{name}: {stored[name]:,.0f} -> {found[name]:,.0f}" for name in TOLERANCES if far(name)]
  if found["collectives"] != stored["collectives"]:
    lines.append(f"collectives: {stored['collectives']} -> {found['collectives']}")
  return lines


@pytest.mark.parametrize("name", STEPS)
def test_a_compiled_step_costs_what_it_did(name, request):
  found = figures(make_run(**STEPS[name]))
  stored = json.loads(STORED.read_text()) if STORED.exists() else {}
  if request.config.getoption("--update-golden"):
    STORED.write_text(json.dumps(stored | {"jax": jax.__version__, name: found}, indent=1) + "\n")
    return
  if stored["jax"] != jax.__version__:
    pytest.skip(f"figures are those of jax {stored['jax']}, this is {jax.__version__}")
  assert not (lines := differences(found, stored[name])), (
    f"{name}: {'; '.join(lines)}. If that was meant: pytest -n 0 {request.node.nodeid.split('[')[0]} --update-golden"
  )


def test_a_dearer_step_is_seen():
  stored = json.loads(STORED.read_text())["causal"]
  assert not differences(stored, stored)
  for name, tolerance in TOLERANCES.items():
    assert differences(stored | {name: stored[name] * (1 + 1.1 * tolerance)}, stored)
  assert differences(stored | {"collectives": {"all-gather": 1}}, stored)


def test_donated_state_is_taken_and_no_step_compiles_again():
  run = make_run("classify", length_buckets=(58, 64))
  shapes = run.loader.shapes()
  run.program.compile(shapes, [])
  state, rng, compiled = run.init_state(), run.noise_rng, []
  jax.block_until_ready((state, rng))
  batches = [jax.device_put(run.loader.batch(step)) for step in range(4)]
  listener = lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    for batch in batches:
      before = state
      state, _ = run.program.train(state, batch, rng)
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
    assert not compiled
    jax.jit(lambda x: x + 41)(1)
    assert compiled  # the listener hears what is compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
