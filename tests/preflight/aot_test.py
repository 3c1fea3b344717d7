"""The command `python -m tools.aot`, with libtpu where it is installed: a report, its JSON, and one line for what is wrong."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm import chips
from lm.preflight import hlo

ROOT = Path(__file__).parent.parent.parent
KEYS = {
  "fits", "peak_bytes", "hbm_bytes", "memory", "model_flops", "compiled_flops", "collectives", "f32_matmuls", "step_seconds",
  "mfu", "tokens_per_sec_per_chip", "compile_seconds", "hours", "chip_hours", "agreed", "prediction", "flags", "versions",
}  # fmt: skip
SMALL = ("--config.tokenizer=bytes", "--config.optimizer=adamw(learning_rate=0.01)", "--config.data=text(path=nowhere.txt)")
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86-64")


def aot(*flags):
  command = [sys.executable, "-m", "tools.aot", "--config=configs/tiny.py:smoke", *SMALL, *flags]
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@needs_libtpu
def test_a_step_is_compiled_for_chips_that_are_not_there(tmp_path):
  out, text = tmp_path / "figures.json", tmp_path / "step.hlo"
  done = aot("--topology=v5e:2x2", "--config.mesh.fsdp=2", f"--out={out}", f"--hlo={text}")
  assert done.returncode == 0, done.stderr
  found = json.loads(out.read_text())
  assert found.keys() >= KEYS
  assert found["fits"]
  assert found["hbm_bytes"] == chips.V5E.usable_bytes
  assert found["mesh"]["data"] == found["mesh"]["fsdp"] == 2
  assert found["dtype"] == "bfloat16"
  assert sum(found["memory"].values()) == found["peak_bytes"] == found["agreed"]["memory"]["peak_memory"]
  assert found["compiled_flops"] == pytest.approx(found["model_flops"], rel=0.2)
  assert {each["axes"] for each in found["collectives"]} >= {"fsdp", "data"}
  assert found["tokens_per_sec_per_chip"] == pytest.approx(8 * 256 / 4 / found["step_seconds"])
  assert found["hours"] == pytest.approx(20 * found["step_seconds"] / 3600)
  assert found["chip_hours"] == pytest.approx(4 * found["hours"])
  assert not found["unknown_trip_counts"]
  assert hlo.Module(text.read_text()).num_partitions == 4
  assert "predicted, not measured" in done.stdout


@needs_libtpu
@pytest.mark.slow
def test_the_step_computes_what_the_arithmetic_says(tmp_path):
  def compile_step(name, *flags):
    out = tmp_path / f"{name}.json"
    shape = {"vocab_size": 1024, "num_layers": 4, "model_dim": 768, "ffn_dim": 3072, "num_heads": 12, "max_len": 512}
    model = [f"--config.model.{option}={value}" for option, value in shape.items()]
    rows = ("--config.batch_size=32", "--config.seq_len=512", "--config.attention=plain")
    done = aot("--topology=v5e:2x2", *model, *rows, *flags, f"--out={out}")
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())

  full, again, lora = (
    compile_step("full"), compile_step("again", "--config.remat=full"), compile_step("lora", "--config.peft=lora(rank=16)"),
  )  # fmt: skip
  assert 0.95 < full["compiled_flops"] / full["model_flops"] <= 1.02
  assert 1.1 < again["compiled_flops"] / again["model_flops"] <= 1.35
  assert lora["compiled_flops"] <= 0.72 * full["compiled_flops"]


@needs_libtpu
def test_what_does_not_fit_says_by_how_much_and_what_to_change(tmp_path):
  out = tmp_path / "figures.json"
  only_tokens = ("--config.peft=lora", "--config.remat=full", "--config.model.num_layers=1")  # else three settings are compiled
  done = aot("--topology=v5e:2x2", "--config.batch_size=262144", *only_tokens, f"--out={out}")
  assert done.returncode == 1, done.stderr
  found = json.loads(out.read_text())
  assert not found["fits"]
  assert found["peak_bytes"] > found["hbm_bytes"]
  assert "too much" in done.stdout
  first = found["alternatives"][0]
  assert first["setting"].startswith("--config.tokens_per_device=")
  assert first["peak_bytes"] < found["peak_bytes"]
  assert first["setting"] in done.stdout


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e-16", "v5e:9x9", "nothing"])
def test_an_unknown_topology_is_one_line_with_examples(topology):
  done = aot(f"--topology={topology}")
  assert done.returncode == 2
  line = done.stderr.strip().splitlines()[-1]
  assert line.startswith(f"error: --topology={topology}: not a topology that libtpu knows; examples are v4:2x2x2, v5e:4x4")


def test_the_attached_device_is_a_topology_too():
  done = aot("--topology=here")
  assert done.returncode == 0, done.stderr
  assert "memory: fits" in done.stdout
  assert "no prediction of time" in done.stdout


@pytest.mark.parametrize(
  ("flags", "complaint"),
  [
    (["--topology=here", "--num_slices=2"], "--num_slices=2: has no effect"),
    (["--topology=here", "--sweep", "--hlo=x"], "--hlo: has no effect"),
    (["--topology=here", "--config.seq_length=3"], "config.seq_length: unknown setting; did you mean 'seq_len'?"),
    (["--topology=here", "--topolgy=x"], "--topolgy=x: unknown flag"),
    (["--topology=here", "--config.mesh.fsdp=3"], "config.mesh: "),
  ],
)
def test_bad_input_is_one_line(flags, complaint):
  done = aot(*flags)
  assert done.returncode == 2
  assert done.stderr.strip().splitlines()[-1].startswith(f"error: {complaint}")
  assert "Traceback" not in done.stderr
