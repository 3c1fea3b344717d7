"""Models trained here, exported: transformers' Auto classes load them and find the same ids, logits and labels."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import transformers

import lm
from lm import convert, train
from lm.config import ConfigError
from lm.data import tagging, tokenizer
from lm.interop import load_pretrained
from tests.conftest import LABELS, OPTIONS, SIZES, TEXTS, make_examples, make_run
from tests.data.hf_tokenizer_test import golden_texts, write_files
from tests.data.tokenizer_test import HARD, SENTENCES
from tests.parity import oracle

pytestmark = pytest.mark.parity
AUTO = {"causal": oracle.AUTO["causal"], "mlm": oracle.AUTO["mlm"], "classify": oracle.AUTO["classifier"]}
AUTO |= {"tag": oracle.AUTO["tagger"], "span_qa": oracle.AUTO["span"]}
DECODER = {"num_kv_heads": 2, "head_dim": 0}
CASES = {
  "gpt2": ("gpt2", "causal", "bytes", {}),
  "gpt2-classifier": ("gpt2", "classify", "sentencepiece", {}),
  "qwen3": ("qwen3-0.6b", "causal", "sentencepiece", DECODER),
  "llama": ("llama-3.2-1b", "causal", "bytes", DECODER),
  "bert": ("bert-base-uncased", "mlm", "sentencepiece", {}),
  "bert-classifier": ("bert-base-uncased", "classify", "bytes", {}),
  "bert-tagger": ("bert-base-uncased", "tag", "bytes", {}),
  "bert-span": ("bert-base-uncased", "span_qa", "bytes", {}),
  "modernbert": ("modernbert-base", "mlm", "bytes", {}),
  "modernbert-classifier": ("modernbert-base", "classify", "sentencepiece", {}),
}
# What is a special there and text here, or a space there and a character here.
DIFFERENT = ("<unk>", "<pad>", "<s>", "</s>", "[MASK]", "\u2581", "<0x")
BYTES = "中文 and 😀 é \x00"  # what the small model has no pieces for


@dataclasses.dataclass(frozen=True)
class Case:
  """A run of a few steps and its export."""

  task: str
  run: Path
  exported: Path

  def load(self):
    """The export, in transformers."""
    model, loaded = AUTO[self.task].from_pretrained(self.exported, dtype=oracle.torch.float32, output_loading_info=True)
    assert not any(loaded.values()), loaded
    return model.eval()


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> str:
  path = str(tmp_path_factory.mktemp("tokenizer") / "small.model")
  tokenizer.train(SENTENCES, path, 300)
  return path


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, sentencepiece) -> Case:
  preset, task, kind, changes = CASES[request.param]
  folder = tmp_path_factory.mktemp(request.param)
  pooling = {"pooling": "mean"} if request.param == "modernbert-classifier" else {}
  settings = {
    "model": {"name": preset, **SIZES, "vocab_size": 0, **changes},
    "task": {"name": task, **OPTIONS.get(task, {}), **pooling},
  }
  settings |= {"tokenizer": "bytes" if kind == "bytes" else sentencepiece, "total_steps": 3, "eval_every": 3, "best_metric": ""}
  train.train(make_run(task, **settings, optimizer={"name": "adamw", "learning_rate": 0.01}), folder / "run")
  convert.export_checkpoint(str(folder / "run"), folder / "exported")
  return Case(task, folder / "run", folder / "exported")


def check_ids(case, texts):
  ours, theirs = load_pretrained(case.run).tokenizer, transformers.AutoTokenizer.from_pretrained(case.exported)
  texts = [text for text in texts if not any(name in text for name in DIFFERENT)]
  assert theirs(texts, add_special_tokens=False)["input_ids"] == [ours.encode(text) for text in texts]
  assert [theirs.decode(ours.encode(text)) for text in texts] == texts
  assert len(theirs) == ours.vocab_size
  return len(texts)


def test_the_same_ids(case):
  assert check_ids(case, [*TEXTS, *HARD, *SENTENCES[:50], BYTES]) > 90


def test_the_same_ids_on_1000_lines(case, data_dir):
  with open(data_dir / "hate_speech_offensive" / "labeled_data.csv", encoding="utf-8", newline="") as stream:
    tweets = [row["tweet"] for _, row in zip(range(400), csv.DictReader(stream), strict=False)]
  assert check_ids(case, golden_texts(data_dir) + tweets) > 990


def test_the_same_logits(case):
  pretrained = load_pretrained(case.run)
  tokens = np.random.default_rng(0).integers(10, pretrained.model.cfg.vocab_size, (3, 60))
  mask = np.ones_like(tokens)
  mask[1, 20:] = 0
  tokens[1, 20:] = pretrained.tokenizer.pad_id
  found, expected = pretrained.run(tokens, attention_mask=mask), oracle.outputs(case.load(), tokens, mask)
  if case.task == "classify":
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)
  else:
    np.testing.assert_allclose(found["logits"][mask > 0], expected["logits"][mask > 0], atol=1e-4)


def test_the_files_say_what_it_is(case):
  config = transformers.AutoConfig.from_pretrained(case.exported)
  card = (case.exported / "README.md").read_text()
  assert config.architectures[0] in card
  assert "library_name: transformers" in card and "- command: `" in card and "| validation/loss |" in card
  assert (case.exported / "generation_config.json").is_file() == (case.task == "causal")
  if case.task == "causal":
    eos = json.loads((case.exported / "generation_config.json").read_text())["eos_token_id"]
    assert eos == load_pretrained(case.run).tokenizer.eos_id
  if case.task == "classify":
    assert config.id2label == dict(enumerate(sorted(set(LABELS))))
    assert config.label2id == {label: i for i, label in config.id2label.items()}
  if case.task == "tag":
    assert list(config.id2label.values()) == ["O", "B-act", "I-act", "B-thing", "I-thing"]


def test_places_of_a_text_are_read_alike(case):
  """From text to tags and answers: the ids with their specials and token types too."""
  if case.task not in ("tag", "span_qa"):
    return
  own, model, tok = lm.load(case.run), case.load(), transformers.AutoTokenizer.from_pretrained(case.exported)
  for example in make_examples(case.task, [text.partition("\n")[0] for text in TEXTS[:3]]):
    texts = [example["text"]]
    if case.task == "span_qa":  # spans are told without the blanks around them
      texts.append(example["text_pair"].replace(" ", "_"))
    with oracle.torch.no_grad():
      out = model(**tok(*texts, return_tensors="pt"))
    if case.task == "tag":
      (said,), names = own.predict(texts), [model.config.id2label[int(i)] for i in out["logits"][0].argmax(-1)]
      starts = [start for start, _ in tagging.find_words(texts[0], said["words"])]  # a token is a byte, behind one special
      assert [names[1 + start] for start in starts] == said["tags"]
    else:
      (said,), front = own.predict([tuple(texts)]), len(texts[0]) + 2
      start_T, end_T = out["start_logits"][0].numpy(), out["end_logits"][0].numpy()
      scores = [start_T[front + span["start"]] + end_T[front + span["stop"] - 1] for span in said["n_best"]]
      shares = [span["score"] for span in said["n_best"]]
      np.testing.assert_allclose(np.diff(scores), np.diff(np.log(shares)), atol=2e-4)


def test_a_text_is_classified_alike(case):
  """From text to scores: the ids with their specials too."""
  if case.task != "classify":
    return
  texts = [*TEXTS[:5], BYTES]
  pipe = transformers.pipeline("text-classification", str(case.exported), dtype=oracle.torch.float32, top_k=None)
  ours = lm.load(case.run).predict(texts)
  for found, row in zip(pipe(texts), ours, strict=True):
    theirs = {entry["label"]: entry["score"] for entry in found}
    assert theirs == pytest.approx(row["scores"], abs=1e-4)


def test_a_model_without_counterpart_is_refused_by_its_mechanisms(tmp_path):
  train.train(make_run("mlm", total_steps=1), tmp_path / "run")
  with pytest.raises(ConfigError, match="the nearest, modernbert, has no norm='rmsnorm'") as caught:
    convert.export_checkpoint(str(tmp_path / "run"), tmp_path / "out")
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "out").exists()


def test_a_decoders_classifier_with_a_published_tokenizer_reads_what_ours_reads(tmp_path):
  """GPT-2's adds no specials there, and its padding is its end of text, which is our last token."""
  folder = write_files(tmp_path / "tokenizer", "gpt2")
  settings = {"model": {"name": "gpt2", **SIZES, "vocab_size": 0}, "tokenizer": str(folder), "total_steps": 3, "eval_every": 3}
  train.train(make_run("classify", **settings, optimizer={"name": "adamw", "learning_rate": 0.01}), tmp_path / "run")
  convert.export_checkpoint(str(tmp_path / "run"), tmp_path / "exported")
  pipe = transformers.pipeline("text-classification", str(tmp_path / "exported"), dtype=oracle.torch.float32, top_k=None)
  ours = lm.load(tmp_path / "run").predict(TEXTS[:5])
  for found, row in zip(pipe(list(TEXTS[:5])), ours, strict=True):
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(row["scores"], abs=1e-4)
