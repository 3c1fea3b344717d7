"""Bad input is one clear line that names the setting, exit code 2, and nothing written."""

import json

import pytest

from lm import main, record
from tests.conftest import CACHE, make_config, make_run

CAUSAL, MLM = "configs/tiny.py:smoke", "configs/tiny_mlm.py:smoke"
MODULE = "experiments/docstring_module/full.py"

# (config, overrides, words that the line must have)
BAD = [
  ("configs/nothing.py", [], ["configs/nothing.py", "no such file"]),
  ("configs/tiny.py:smokey", [], ["smokey", "accepted"]),
  ("tests/conftest.py", [], ["get_config"]),
  (CAUSAL, ["optimzer=adamw"], ["config.optimzer", "'optimizer'"]),
  (CAUSAL, ["optimizer.learning_rat=1"], ["learning_rat", "'learning_rate'"]),
  (CAUSAL, ["optimizer.learning_rate=fast"], ["learning_rate", "'fast'"]),
  (CAUSAL, ["optimizer.learning_rate=-1"], ["learning_rate", "above 0"]),
  (CAUSAL, ["optimizer.schedule=sine"], ["schedule", "cosine"]),
  (CAUSAL, ["optimizer=adamm"], ["adamm", "'adamw'"]),
  (CAUSAL, ["batch_size=many"], ["config.batch_size", "integer"]),
  (CAUSAL, ["batch_size=0"], ["config.batch_size=0", "at least 1"]),
  (CAUSAL, ["batch_size=9"], ["config.batch_size=9", "divisible by 8"]),
  (CAUSAL, ["mesh.data=3"], ["config.mesh", "8 devices"]),
  (CAUSAL, ["mesh.dat=3"], ["config.mesh.dat", "'data'"]),
  (CAUSAL, ["seq_len=4096"], ["config.seq_len=4096", "2048"]),
  (CAUSAL, ["seed=-1"], ["config.seed=-1", "negative"]),
  (CAUSAL, ["seq_len=1"], ["config.seq_len=1"]),
  (CAUSAL, ["length_buckets=64,128"], ["length_buckets", "seq_len=256"]),
  (CAUSAL, ["length_buckets=128,256"], ["length_buckets", "packed"]),
  (CAUSAL, ["tokens_per_device=100"], ["tokens_per_device=100", "256"]),
  (CAUSAL, ["loss_chunk=100"], ["loss_chunk=100", "divide"]),
  (CAUSAL, ["loss_chunk=64", "length_buckets=(96,128)", "seq_len=128"], ["loss_chunk=64", "length_buckets; not 96"]),
  (CAUSAL, ["total_steps=3 fortnights"], ["total_steps", "fortnights", "epochs"]),
  (CAUSAL, ["total_steps=0"], ["total_steps=0"]),
  (CAUSAL, ["dtype=float8"], ["dtype", "bfloat16"]),
  (CAUSAL, ["remat=all"], ["remat", "block"]),
  (CAUSAL, ["model.num_heads=5"], ["num_heads=5", "divide"]),
  (CAUSAL, ["model=gpt3"], ["gpt3", "gpt2"]),
  (CAUSAL, ["model.nrom=rmsnorm"], ["nrom", "'norm'"]),
  (CAUSAL, ["model.vocab_size=100"], ["vocab_size=100", "261"]),
  (CAUSAL, ["task=mlm"], ["mlm", "bidirectional"]),
  (MLM, ["task=causal"], ["causal", "autoregressive"]),
  (MLM, ["task.mask_rate=1.5"], ["mask_rate=1.5"]),
  (MLM, ["task=classify"], ["classify", "2 classes"]),
  (CAUSAL, ["data=pydoc"], ["pydoc", "'pydocs'"]),
  (CAUSAL, ["data=memory"], ["memory", "no examples"]),
  (CAUSAL, ["data=text", "data.path=missing.txt"], ["missing.txt", "no such file"]),
  ("configs/finetune.py:order", [], ["configs/finetune.py:order", "classification", "regress"]),
  (CAUSAL, ["data=table"], ["data.path", "not set", ".csv"]),
  (CAUSAL, ["data=table(path=missing.csv)"], ["data.path='missing.csv'", "no such file"]),
  (CAUSAL, ["data=table(path=setup.cfg)"], ["data.path='setup.cfg'", ".parquet"]),
  (CAUSAL, ["tokenizer=missing.model"], ["missing.model", "train_tokenizer"]),
  (CAUSAL, ["tokenizer=setup.cfg"], ["setup.cfg", "SentencePiece"]),
  (CAUSAL, ["peft=lroa"], ["lroa", "'lora'"]),
  (CAUSAL, ["peft=lora(rank=0)"], ["rank=0"]),
  (CAUSAL, ["peft=lora(rank=many)"], ["rank", "'many'"]),
  (CAUSAL, ["peft=lora(targets='conv')"], ["conv", "linear"]),
  (CAUSAL, ["init_from=missing"], ["missing", "no such folder"]),
  (CAUSAL, ["streams.a.task=mlm"], ["streams.a"]),
  (CAUSAL, ["evaluators.x=accuracy"], ["accuracy", "classification"]),
]


@pytest.mark.parametrize(("path", "overrides", "words"), BAD, ids=[f"{c.rsplit('/')[-1]}-{'-'.join(o)}" for c, o, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(path, overrides, words, tmp_path, capsys):
  workdir = tmp_path / "run"
  flags = [f"--config.{override}" for override in overrides]
  code = main.main([f"--config={path}", f"--workdir={workdir}", f"--config.cache_dir={CACHE / 'data'}", *flags])
  error = capsys.readouterr().err.strip()
  assert code == 2
  assert "\n" not in error
  assert all(word in error for word in words), error
  assert not workdir.exists()


def test_flags_that_are_missing_or_unknown(capsys):
  for argv, word in ((["--workdir=x"], "--config"), (["--confg=x"], "'--config'"), (["--config"], "needs a value")):
    assert main.main(argv) == 2
    assert word in capsys.readouterr().err
  assert main.main(["--help"]) == 0


def test_workdir_of_another_config_is_refused(tmp_path, capsys):
  record.prepare(make_run(), tmp_path, 0)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  with pytest.raises(ValueError, match="seq_len: 64 -> 32"):
    record.check(make_config(seq_len=32), tmp_path)
  record.check(make_config(log_every=7), tmp_path)  # an execution setting may change
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_unreadable_checkpoint_is_one_line(tmp_path):
  from lm import train

  run = make_run(total_steps=2)
  train.train(run, tmp_path)
  summary = json.loads((tmp_path / "summary.json").read_text())
  (tmp_path / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
  for path in (tmp_path / "checkpoints" / "2" / "params").rglob("*"):
    if path.is_file():
      path.write_bytes(b"broken")
  with pytest.raises(ValueError, match="checkpoint .* cannot be read"):
    train.train(run, tmp_path)
