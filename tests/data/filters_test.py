"""Each filter: what stays, what it notes, and that neither the size of batches nor what was seen before changes a text."""

import json
import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lm import plug
from lm.config import ConfigError
from lm.data.filters.filter import Document
from lm.data.filters.redact import FORMS, redact
from lm.data.ngrams import split_words


def apply(spec, texts, size=3):
  """(numbers that stay, their texts, notes)."""
  documents, notes = [Document(i, text) for i, text in enumerate(texts)], {}
  batches = [documents[i : i + size] for i in range(0, len(documents), size)]
  kept = [
    document for batch in plug.make("filter", plug.parse_plug("filter", spec)).apply(batches, notes) for document in batch
  ]
  json.dumps(notes)  # it is part of a report
  return [document.number for document in kept], [document.text for document in kept], notes


def shingles(text, n=5):
  """The reference: the set of a text's word n-grams; a short text is one."""
  words = re.findall(r"\w+", text.lower())
  return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} or {tuple(words)}


def jaccard(a, b):
  return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


TEXTS = ["The cat", "the  CAT", "a dog", "Ｔhe cat", "a dog", "the cat!"]


def test_equal_documents_go_and_the_first_stays():
  kept, texts, notes = apply("exact", TEXTS)
  assert kept == [0, 2, 5]
  assert texts == ["The cat", "a dog", "the cat!"]
  assert notes["examples"] == [[1, 0], [3, 0], [4, 2]]
  assert apply("exact(as_written=true)", TEXTS)[0] == [0, 1, 2, 3, 5]


@settings(deadline=None)  # tables of all characters are made at the first use
@given(st.lists(st.sampled_from(TEXTS), max_size=12), st.integers(1, 5))
def test_a_second_pass_finds_no_duplicate(texts, size):
  for spec in ("exact", "near"):
    kept, once, _ = apply(spec, texts, size)
    assert kept == sorted(kept)
    assert apply(spec, once)[1] == once
    assert apply(spec, texts, size=7)[0] == kept


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs():
  """Away from the threshold the estimate decides as the exact similarity does; every pair is compared here."""
  rng, vocabulary = random.Random(0), [f"word{i}" for i in range(500)]
  texts = [" ".join(rng.choices(vocabulary, k=80)) for _ in range(40)]
  for i in range(20):
    words = texts[i].split()
    for _ in range((1, 12)[i % 2]):
      words[rng.randrange(len(words))] = rng.choice(vocabulary)
    texts.append(" ".join(words))
  expected = []
  for i, text in enumerate(texts):
    similarity = max((jaccard(text, texts[j]) for j in expected), default=0.0)
    assert not 0.68 < similarity < 0.84
    if similarity < 0.8:
      expected.append(i)
  kept, _, notes = apply("near(ngram=5, threshold=0.8)", texts, size=16)
  assert kept == expected
  assert len(kept) == 50
  for document, other, estimate in notes["examples"]:
    assert other < document
    assert abs(estimate - jaccard(texts[document], texts[other])) < 0.12
  assert apply("near(ngram=5, threshold=0.8, seed=1)", texts)[0] == kept


def test_no_chain_of_changes_takes_out_what_is_unlike_all_that_stay():
  words = [f"w{i}" for i in range(100)]
  chain = [" ".join([f"x{i}" for i in range(6 * step)] + words[6 * step :]) for step in range(12)]
  kept, texts, _ = apply("near(threshold=0.7)", chain, size=4)
  assert 1 < len(kept) < len(chain)
  assert all(max(jaccard(text, other) for other in texts) > 0.6 for text in chain)


def test_text_without_blanks_has_near_duplicates():
  text = "今天天气很好我们一起去公园散步然后在湖边的小店里喝茶看书聊天直到太阳下山才慢慢走回家准备做晚饭给大家吃"
  assert apply("near", [text, text[:30] + "，" + text[30:], text[::-1], text[1:]])[0] == [0, 2]


def test_documents_without_words_stay():
  assert apply("near", ["...", "", "!", "a", "A"])[0] == [0, 1, 2, 3]


def test_evaluation_text_is_found_and_counted(tmp_path):
  words = [f"w{i}" for i in range(40)]
  line = lambda first, stop: " ".join(words[first:stop])
  path, other = tmp_path / "eval.txt", tmp_path / "other.txt"
  path.write_text("\n".join([line(0, 20), line(20, 40), line(5, 10)]) + "\n")
  other.write_text(line(3, 18) + "\n")
  texts = [
    "so " + line(0, 13).upper().replace(" ", ", ") + " end",
    line(0, 12),
    line(25, 40),
    f"{line(13, 20)} x {line(20, 26)}",
  ]
  spec = f"decontaminate(against=('text(test={path})', 'text(test={other})'))"
  kept, _, notes = apply(spec, texts, size=2)
  assert kept == [1, 3]
  first, second = notes["against"]
  assert (first["texts"], first["too_short"], first["found"], first["documents"]) == (3, 1, 2, 2)
  assert (second["texts"], second["too_short"], second["found"], second["documents"]) == (1, 0, 0, 0)
  assert first["examples"][0] == {"document": 0, "shares": line(0, 13).upper().replace(" ", ", ")}
  assert apply(spec.replace("against=", "ngram=5, against="), texts)[0] == []


def test_both_texts_of_an_evaluation_example_count(tmp_path):
  path = tmp_path / "pairs.csv"
  path.write_text("q,a,label\n" + " ".join("abcdefgh") + "," + " ".join("ijklmnop") + ",x\n")
  spec = f"decontaminate(ngram=4, split=train, against='table(path={path}, text=\"q,a\", label=label)')"
  kept, _, notes = apply(spec, ["i j k l", "g h i j", "a b c d e"])
  assert kept == [1]
  assert notes["against"][0]["texts"] == 3
  assert notes["against"][0]["too_short"] == 1, "the label"


def test_lengths_are_words_and_characters():
  texts = ["one", "one two", "one two three", "一二三", ""]
  assert apply("length(min_words=2, max_words=2)", texts)[0] == [1]
  assert apply("length(min_words=2)", texts)[0] == [1, 2, 3]
  kept, _, notes = apply("length(min_chars=3, max_chars=7)", texts)
  assert kept == [0, 1, 3]
  assert (notes["too_short"], notes["too_long"]) == (1, 1)


def test_scripts_are_shares_of_letters():
  texts = ["Hello, мир", "Привет, world!", "你好 ok", "1234 !!", "ﾊﾝｶｸ", "Ｗｉｄｅ"]
  assert apply("script(scripts=Latin)", texts)[0] == [0, 2, 5]
  assert apply("script(scripts=Han, min_share=0.5)", texts)[0] == [2]
  assert apply("script(scripts='Han,Katakana,cyrillic', min_share=0.3)", texts)[0] == [0, 1, 2, 4]
  assert apply("script(scripts=Latin)", ["ab я", "1"])[2] == {"letters": 3, "in_scripts": 2}


PERSONAL = [
  ("Ask ann.lee+x@mail.example.org.", "Ask <email>."),
  ("邮箱a@b.cn，电话13812345678。", "邮箱<email>，电话<phone>。"),
  ("(555) 867-5309 or 555-867-5309 x12", "<phone> or <phone>"),
  ("call +44 20 7946 0958, +4915112345678", "call <phone>, <phone>"),
  ("010-62345678", "<phone>"),
  ("4111 1111 1111 1111, 4111111111111111 and 3782-822463-10005", "<credit_card>, <credit_card> and <credit_card>"),
  ("from 192.168.0.255.", "from <ip>."),
  ("SSN 536-90-4399", "SSN <ssn>"),
  ("身份证11010519491231002X", "身份证<resident_id>"),
]
KEPT = [
  "4111 1111 1111 1112",  # Luhn
  "110105194912310021",  # check digit
  "11010519491331002X",  # month 13
  "999.1.1.1 and 1.2.3 and 1.2.3.4.5",
  "000-12-3456, 666-12-3456, 123-00-4567",
  "at 10:30 on 2024-05-06, pages 123-456, 1,234,567.89, a@b, @name",
  "sha 4155551234abcdef 0x13812345678f",
]


@pytest.mark.parametrize(("text", "expected"), PERSONAL)
def test_personal_data_is_replaced(text, expected):
  assert apply("redact", [text])[1] == [expected]


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_alike_stays(text):
  assert apply("redact", [text])[1] == [text]


def test_replacements_are_counted_by_kind():
  kept, texts, notes = apply("redact(kinds='ip,email')", ["a@b.org 1.1.1.1", "none", "c@d.org 555-867-5309"])
  assert kept == [0, 1, 2]
  assert texts[2] == "<email> 555-867-5309"
  assert notes == {"replaced": {"ip": 1, "email": 2}, "changed": 2}


PIECES = st.sampled_from([*(text for text, _ in PERSONAL), "@", ".", "-", " ", "+", "1", "(555)", "x@y.zz", "55", "<email>"])


@given(st.lists(PIECES, max_size=6).map("".join) | st.text(st.sampled_from("0123456789 .-+@ax<>()"), max_size=60))
@example("536-90-4399x@y.zz")
def test_what_is_replaced_once_stays(text):
  counts = dict.fromkeys(FORMS, 0)
  once = redact(text, counts)
  assert redact(once, dict.fromkeys(FORMS, 0)) == once
  assert (once != text) == (sum(counts.values()) > 0)
  placeholders = lambda text: len(re.findall(f"<(?:{'|'.join(FORMS)})>", text))
  assert placeholders(once) == placeholders(text) + sum(counts.values())


@pytest.mark.parametrize("text", ["a" * 50_000, "1" * 50_000, "1-" * 30_000, "a." * 30_000, "+1 " * 20_000, "a@" * 30_000])
def test_no_text_takes_long(text):
  assert len(split_words([redact(text, dict.fromkeys(FORMS, 0))]).hash_W) > 0


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    ("nera", "filter 'nera': unknown; did you mean 'near'?"),
    ("near(treshold=0.5)", "did you mean 'threshold'?"),
    ("near(threshold=80)", "threshold=80.0: accepted are 0.1 to 1"),
    ("near(ngram=0)", "ngram=0"),
    ("near(num_permutations=2)", "accepted are 64 to 4096"),
    ("length", "no limit is set"),
    ("length(min_words=5, max_words=4)", "min_words=5, max_words=4"),
    ("script", "scripts is not set"),
    ("script(scripts=Latn)", "scripts='Latn'"),
    ("script(scripts=Latin, min_share=50)", "min_share=50.0"),
    ("redact(kinds=mail)", "kinds='mail': accepted are email"),
    ("decontaminate", "against is not set"),
    ("decontaminate(against=pydocs, split=dev)", "split='dev'"),
    ("decontaminate(against=pydocs, ngram=0)", "ngram=0"),
  ],
)
def test_bad_options_are_one_line(spec, words):
  with pytest.raises(ConfigError) as error:
    plug.make("filter", plug.parse_plug("filter", spec))
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_an_evaluation_set_that_cannot_be_found_is_refused(tmp_path):
  (tmp_path / "a.txt").write_text("too short\n")
  with pytest.raises(ConfigError, match="no text has 13 words"):
    apply(f"decontaminate(against='text(test={tmp_path}/a.txt)')", ["a"])
