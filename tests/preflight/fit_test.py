"""Whether a step fits: parts that add up, what helps where it does not, the automatic micro-batch, and the outline of a run."""

import dataclasses
import json

import jax
import pytest

from lm import build, config, main, train
from lm.config import ConfigError
from lm.preflight import figures, fit, memory, sweep
from lm.program import Program
from tests.conftest import SIZES, make_config, make_run, shrunk


@pytest.fixture
def free(monkeypatch):
  """free(n): devices have n bytes free."""
  return lambda limit: monkeypatch.setattr(memory, "free_bytes", lambda _mesh: limit)


def peak(run) -> int:
  return fit.largest(run.outline).peak_bytes


def test_parts_add_up_and_what_is_donated_counts_once():
  run = make_run("causal")
  step = fit.largest(run.outline)
  found = step.memory
  assert found.peak == step.peak_bytes
  assert found.parameters == 4 * run.program.num_params["total"]
  assert found.optimizer == pytest.approx(2 * found.parameters, rel=0.01)  # two moments; the state is there once
  assert 0 < found.activations < step.peak_bytes
  assert found.inputs > 3 * 8 * 64 * 4


def test_a_device_holds_its_part_of_what_is_sharded():
  whole, parts = (fit.largest(make_run(devices=n, mesh={"data": 1, "fsdp": n}).outline).memory for n in (1, 4))
  assert parts.parameters < 0.3 * whole.parameters
  assert parts.optimizer < 0.3 * whole.optimizer
  assert parts.activations < 0.3 * whole.activations


def test_frozen_parameters_have_no_moments():
  full, lora = (fit.largest(make_run(peft=peft).outline).memory for peft in ("full", "lora"))
  assert lora.parameters > full.parameters
  assert lora.optimizer < 0.7 * full.optimizer


def test_recomputation_keeps_less_for_the_backward_pass():
  none, block = (fit.largest(make_run(remat=remat).outline).memory for remat in ("none", "block"))
  assert block.activations < 0.5 * none.activations
  assert block.activations >= 2 * 8 * 64 * 32 * 4  # the input of both layers


def test_a_step_that_fits_is_let_through(free):
  run = make_run()
  free(peak(run))
  assert fit.check(run.outline).peak_bytes == peak(run)


def test_a_step_that_does_not_fit_says_its_parts_and_what_would_help(free):
  run = make_run()
  free(peak(run) - 1)
  with pytest.raises(fit.DoesNotFitError) as error:
    fit.check(run.outline)
  first, parts, *ways = str(error.value).splitlines()
  assert first.startswith("the train step needs ")
  assert "too much" in first
  assert all(field.name in parts for field in dataclasses.fields(memory.Memory))
  assert [way.split(":")[0].strip() for way in ways] == [
    "with --config.tokens_per_device=256",
    "with --config.remat=dots",
    "with --config.peft=lora",
  ]
  assert all("MiB on each device, the global batch as it is" in way for way in ways)


def test_what_would_help_has_the_peak_that_it_gives(free):
  run = make_run()
  found = {each.setting: each.step.peak_bytes for each in fit.alternatives(run.outline, fit.largest(run.outline))}
  tokens = next(setting for setting in found if "tokens_per_device" in setting)
  assert found[tokens] == peak(make_run(tokens_per_device=int(tokens.split("=")[1]), batch_size=8))
  assert found["--config.peft=lora"] == peak(make_run(peft="lora"))
  assert all(size < peak(run) for size in found.values())


def test_under_a_method_that_leaves_kernels_frozen_four_bits_would_help():
  wide = {"peft": "lora", "model": {"name": "gpt2-tiny", **SIZES, "model_dim": 64, "num_heads": 1}}
  run = make_run(**wide)
  ((setting, program),) = fit._fewer_weights(run.outline)
  assert setting == "--config.quantizer=nf4"
  found = peak(dataclasses.replace(run, program=program))
  assert found == peak(make_run(quantizer="nf4", **wide)) < peak(run)
  assert not list(fit._fewer_weights(make_run(quantizer="nf4", **wide).outline))


def test_a_run_that_does_not_fit_ends_before_anything_is_written(free, tmp_path):
  free(1000)
  with pytest.raises(fit.DoesNotFitError, match="are free"):
    train.train(make_run(), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_the_command_line_exits_with_2_and_the_error_first(free, tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(main, "set_up_process", lambda: "cpu")
  free(1000)
  flags = ["--config.model.num_layers=1", "--config.seq_len=32", "--config.data=memory(texts=('one two', 'three'))"]
  assert main.main(["--config=configs/tiny.py:smoke", f"--workdir={tmp_path / 'run'}", *flags]) == 2
  assert capsys.readouterr().err.startswith("error: the train step needs ")


def test_memory_that_ends_while_it_trains_is_explained(tmp_path, monkeypatch):
  run = make_run()

  def exhausted(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")

  monkeypatch.setattr(Program, "train", exhausted)
  with pytest.raises(fit.DoesNotFitError, match=r"^RESOURCE_EXHAUSTED: Out of memory[^\n]*\n  now 512 tokens"):
    train.train(run, tmp_path / "run")


def test_other_errors_of_the_device_pass(tmp_path):
  run = make_run()
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), fit.watch(run.outline):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_auto_takes_the_most_tokens_that_fit(free):
  sizes = {n: peak(make_run(tokens_per_device=64 * n)) for n in (8, 4, 2)}
  assert sizes[8] > sizes[4] > sizes[2]
  run = make_run(tokens_per_device="auto")
  for tokens, accumulation in ((8, 1), (4, 2), (2, 4)):
    free(sizes[tokens])
    assert fit.settle(run.outline).spec.accumulation == accumulation
  free(1)
  assert fit.settle(run.outline).spec.accumulation == 8
  free(sizes[8])
  assert fit.settle(run.outline, least=2).spec.accumulation == 2  # as before an interruption


def test_a_run_on_auto_keeps_what_it_settled_on(free, tmp_path):
  free(peak(make_run(tokens_per_device=256)))
  calls = iter(range(100))
  make = lambda: make_run(tokens_per_device="auto", total_steps=4)
  train.train(make(), tmp_path, stop=lambda: next(calls) == 2)
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert manifest["accumulation"] == 2
  free(1 << 40)
  assert train.train(make(), tmp_path)["status"] == "finished"
  assert json.loads((tmp_path / "manifest.json").read_text())["accumulation"] == 2


def test_free_memory_of_a_cpu_is_shared_by_its_devices():
  one, eight = (memory.free_bytes(make_run(devices=n).mesh) for n in (1, 8))
  assert eight == pytest.approx(one / 8, rel=0.2)


@pytest.mark.parametrize("kind", ["causal", "mlm", "classify", "prefix_lm", "span_corruption", "ul2", "fim", "sentence_pair"])
def test_an_outline_compiles_the_step_that_the_run_takes(kind):
  cfg = make_config(kind, seq_len=64)
  run, outline = build.make_run(cfg, jax.devices()[:1]), build.make_outline(cfg, jax.devices()[:1])
  shapes = lambda batches: [jax.tree.map(lambda x: (x.shape, x.dtype), dict(batch)) for batch in batches]
  theirs, mine = shapes(run.loader.shapes()), shapes(outline.batches)
  assert jax.tree.structure(theirs) == jax.tree.structure(mine)
  assert outline.total_steps == run.total_steps
  if kind in ("causal", "prefix_lm", "fim", "span_corruption", "ul2"):
    assert outline.program is run.program
    assert theirs == mine


def test_an_outline_needs_no_data_and_no_tokenizer():
  cfg = make_config(
    tokenizer="nowhere/tokenizer.model",
    data={"name": "text", "path": "nowhere/*.txt"},
    model=shrunk("gpt2", vocab_size=500),
    init_from="nowhere/base",
    total_steps="2 epochs",
  )
  outline = build.make_outline(cfg, jax.devices()[:1])
  assert outline.program.spec.model.cfg.vocab_size == 500
  assert outline.total_steps is None
  assert [note.split("=")[0] for note in outline.notes] == ["config.init_from", "config.tokenizer", "config.total_steps"]


def test_without_any_size_of_the_vocabulary_an_outline_is_refused():
  with pytest.raises(ConfigError, match="config.model.vocab_size: not set, and neither config.tokenizer='nowhere.model'"):
    build.make_outline(make_config(tokenizer="nowhere.model"))


@pytest.mark.slow
def test_a_sweep_ranks_what_fits(free):
  outline = build.make_outline(make_config(batch_size=16), jax.devices()[:2])
  small = fit.largest(build.make_run(make_config(batch_size=16, remat="block"), jax.devices()[:2]).outline).peak_bytes
  free(small)
  lines = []
  found = sweep.sweep(outline, jax.devices()[:2], "here", lines.append)
  assert found
  assert all(each["fits"] and each["peak_bytes"] <= small for each in found)
  assert [each["peak_bytes"] for each in found] == sorted(each["peak_bytes"] for each in found)
  assert any("does not fit" in line for line in lines)
  assert len(lines) >= len(found)
  words = sweep.words(found).splitlines()
  assert len(words) == len(found)
  assert "--config.mesh.fsdp=" in words[0]
  assert "--config.tokens_per_device=" in words[0]


def test_meshes_divide_the_devices_and_the_batch():
  outline = build.make_outline(make_config(batch_size=8, model=shrunk("llama-3.2-1b", vocab_size=300)), jax.devices())
  found = sweep.meshes(outline, 8)
  assert {(m.data, m.fsdp, m.tensor) for m in found} == {(1, 8, 1), (2, 4, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2), (4, 1, 2)}


def test_figures_of_the_attached_device_hold_no_predicted_time():
  outline = build.make_outline(make_config(), jax.devices()[:1])
  found = figures.measure_step(outline, fit.largest(outline), "here")
  assert found["fits"]
  assert sum(found["memory"].values()) == found["peak_bytes"]
  assert found["compiled_flops"] == pytest.approx(found["model_flops"], rel=0.2)
  assert found["step_seconds"] is found["mfu"] is None
  assert "does not fit" not in figures.words(found)


def test_old_names_of_settings_are_read_from_a_workdir():
  kept = config.to_dict(make_config(tokens_per_device=128))
  kept["max_device_tokens"] = kept.pop("tokens_per_device")
  assert config.from_kept(kept) == make_config(tokens_per_device=128)
