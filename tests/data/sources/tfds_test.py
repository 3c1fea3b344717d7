"""Data sets that TFDS itself writes here, as ArrayRecord and as Parquet: splits, slices, labels, and what to do without one."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lm.config import ConfigError, parse_plug
from lm.data.sources.tfds import Tfds
from lm.plug import make
from tests.conftest import make_run

F = tfds.features
SIZES = {"train": 25, "validation": 5, "test": 4}


class LmReviews(tfds.core.GeneratorBasedBuilder):
  """A label, a text under another name than `text`, and secret labels in the test split, as GLUE has them."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    label = F.ClassLabel(names=["bad", "good"])
    features = F.FeaturesDict({"idx": np.int32, "sentence": F.Text(), "label": label})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(name, size) for name, size in SIZES.items()}

  def _generate_examples(self, name, size):
    for i in range(size):
      yield i, {"idx": i, "sentence": f"{name} naïve {i}", "label": -1 if name == "test" else i % 2}


class LmPairs(LmReviews):
  """Two texts, two label features, one with a config in its path."""

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="en", version="1.0.0")]

  def _info(self):
    names = {"a": F.Text(), "b": F.Text(), "x": F.ClassLabel(names=["0"]), "y": F.ClassLabel(num_classes=3)}
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(names))

  def _generate_examples(self, name, size):
    for i in range(size):
      yield i, {"a": f"{name} {i}", "b": f"of {size}", "x": 0, "y": i % 3}


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def data_dir(request, tmp_path_factory):
  folder = str(tmp_path_factory.mktemp(request.param))
  for builder in (LmReviews, LmPairs):
    builder(data_dir=folder, file_format=request.param).download_and_prepare()
  return folder


def examples(source):
  return [source[i] for i in range(len(source))]


def test_splits_have_their_texts_and_the_names_of_their_labels(data_dir):
  source = Tfds(dataset="lm_reviews", data_dir=data_dir)
  found = {name: examples(replace(source, split=name)) for name in SIZES}
  assert {name: len(each) for name, each in found.items()} == SIZES
  for name in ("train", "validation"):
    expected = {f"{name} naïve {i}": ("bad", "good")[i % 2] for i in range(SIZES[name])}
    assert {e["text"]: e["label"] for e in found[name]} == expected
  assert {tuple(e) for e in found["test"]} == {("text",)}
  assert source.labels == ("bad", "good")
  assert not source.pairs
  counts = "train 25, validation 5, test 4 examples; text 'sentence', label 'label' of 2"
  assert source.describe() == f"tfds lm_reviews/1.0.0: {counts}"
  assert source.locate(0) == {"dataset": "lm_reviews/1.0.0:train", "row": 1}


def test_rows_in_any_order_are_the_same(data_dir):
  source = Tfds(dataset="lm_reviews", data_dir=data_dir, train="train[5:]")
  in_order = examples(source)
  for order in (range(19, -1, -1), (3, 4, 5, 0, 1, 19), [*range(20)] * 2):
    assert [source[i] for i in order] == [in_order[i] for i in order]
  for index in (-1, 20):
    with pytest.raises(IndexError):
      source[index]


@pytest.mark.parametrize("cut", ["80%", "20"])
def test_slices_part_a_split(cut, data_dir):
  source = Tfds(dataset="lm_reviews:1.0.0", data_dir=data_dir, train=f"train[:{cut}]", validation=f"train[{cut}:]")
  whole = examples(Tfds(dataset="lm_reviews", data_dir=data_dir))
  assert examples(source) == whole[:20]
  assert examples(replace(source, split="validation")) == whole[20:]
  twice = replace(source, train="train[:2]+validation[1:3]")
  others = examples(replace(twice, split="validation", validation="validation"))
  assert examples(twice) == whole[:2] + others[1:3]


def test_pairs_and_one_of_several_labels_are_named(data_dir):
  source = Tfds(dataset="lm_pairs/en", data_dir=data_dir, text=("b", "a"), label="y", split="test")
  assert sorted(e["text_pair"] for e in examples(source)) == ["test 0", "test 1", "test 2", "test 3"]
  assert source[0]["text"] == "of 4"
  assert source.pairs
  assert source.labels == ("0", "1", "2")
  assert examples(replace(source, dataset="lm_pairs")) == examples(source)
  assert "label" not in replace(source, label="")[0]


def test_the_fingerprint_follows_name_split_and_what_is_read(data_dir):
  source = Tfds(dataset="lm_pairs", data_dir=data_dir, text=("a",), label="y")
  others = [replace(source, text=("b",)), replace(source, label="x"), replace(source, train="train[:3]")]
  prints = {other.fingerprint() for other in (source, replace(source, split="test"), *others)}
  assert len(prints) == 5
  assert replace(source, validation="test").fingerprint() == source.fingerprint()


def test_the_short_form_is_read_by_the_plug_in(data_dir):
  plug = parse_plug("config.data", f"tfds:lm_pairs/en:1.0.0(data_dir={data_dir}, text='b, a')")
  source = make("data", plug, split="train")
  assert (source.dataset, source.data_dir, source.text) == ("lm_pairs/en:1.0.0", data_dir, ("b", "a"))
  assert parse_plug("config.data", "tfds:glue/sst2").to_dict() == {"name": "tfds", "dataset": "glue/sst2"}


def test_a_run_classifies_its_labels(data_dir):
  run = make_run("classify", data=f"tfds:lm_reviews(data_dir={data_dir})", cache_dir=data_dir)
  (task,) = run.tasks.values()
  assert task.labels == ("bad", "good")
  assert set(run.loader.batch(0)["classify"]["label"]) == {0, 1}


def test_errors_say_what_to_do(data_dir, tmp_path):
  ours, pairs = {"dataset": "lm_reviews", "data_dir": data_dir}, {"dataset": "lm_pairs", "data_dir": data_dir}
  cases = [
    ({"dataset": ""}, r"data\.dataset='': accepted is name"),
    ({"dataset": "glue/../x"}, r"data\.dataset='glue/\.\./x': accepted is name"),
    (ours | {"split": "dev"}, r"data\.split='dev': accepted are train, validation, test"),
    (ours | {"train": "dev"}, r"data\.train='dev': lm_reviews has train, validation, test, and slices"),
    (ours | {"train": "train[:200%]"}, r"data\.train='train\[:200%\]': lm_reviews has"),
    (ours | {"text": ("idx",)}, r"data\.text='idx': lm_reviews has the Text features sentence$"),
    (ours | {"label": "idx"}, r"data\.label='idx': lm_reviews has the ClassLabel features label$"),
    (ours | {"dataset": "lm_reviews:2.0.0"}, r"prepared are the versions 1\.0\.0$"),
    (pairs, r"data\.text: not set; of lm_pairs accepted are one or two of a, b$"),
    (
      {"dataset": "glue/sst2"},
      r"not prepared in .*; prepare glue/sst2/2\.0\.0 once with: .*tensorflow_datasets\.text;",
    ),
    ({"dataset": "glue/sst2", "data_dir": "gs://bucket/tfds"}, r"data\.data_dir='gs://bucket/tfds': .*gcsfs"),
    ({"dataset": "glue/sst3"}, r"does not have it \(BuilderConfig sst3 not found.*\); see .*catalog/glue$"),
    ({"dataset": "glu"}, r"no builder of this name \(the nearest: .*glue.*\); correct it, or copy"),
    ({"dataset": "super_glue"}, r"cannot run here \(No module named 'tensorflow'\); copy one there"),
  ]
  for options, message in cases:
    with pytest.raises(ConfigError, match=message) as caught:
      examples(Tfds(**({"data_dir": str(tmp_path)} | options)))
    assert "\n" not in str(caught.value)


def test_several_configs_are_listed_and_tfrecord_is_refused(tmp_path):
  class Old(LmReviews):
    """Written as TFDS writes by default."""

    name = "old"

  for version in ("a/1.0.0", "b/1.0.0"):
    (tmp_path / "many" / version).mkdir(parents=True)
    (tmp_path / "many" / version / "dataset_info.json").write_text("{}")
  with pytest.raises(ConfigError, match="accepted is one of many/a, many/b$"):
    len(Tfds(dataset="many", data_dir=str(tmp_path)))
  LmReviews(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
  path = tmp_path / "lm_reviews" / "1.0.0" / "dataset_info.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
  with pytest.raises(ConfigError, match="prepared as tfrecord; "):
    len(Tfds(dataset="lm_reviews", data_dir=str(tmp_path)))


def test_the_plug_in_needs_no_tensorflow_and_no_jax(data_dir):
  code = f"""
import sys
from lm.data.sources.tfds import Tfds
assert "tensorflow_datasets" not in sys.modules
assert len(Tfds(dataset="lm_reviews", data_dir={data_dir!r})) == 25
assert not {{"tensorflow", "jax"}} & set(sys.modules)
"""
  subprocess.run([sys.executable, "-c", code], check=True)
