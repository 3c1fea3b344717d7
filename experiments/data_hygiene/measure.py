"""python -m experiments.data_hygiene.measure --source=wikitext-2/train.txt: precision and recall of planted near-duplicates.

5% of the documents of at least 20 words come again with words replaced, dropped and swapped, in random places of the corpus.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path
from typing import Any

from lm.data.filters.filter import Document
from lm.data.filters.near import Near

SHARE = 0.05  # of the documents that are planted again
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of a copy's words that are changed
SETTINGS = ((5, 0.8), (5, 0.6), (3, 0.8), (3, 0.7), (3, 0.6), (3, 0.5))  # (n-gram, threshold)
BATCH = 1000  # documents


def main() -> None:
  """Writes results.json beside this file, and prints it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--source", required=True, help="a text file with a document per line")
  lines = Path(parser.parse_args().source).read_text(encoding="utf-8").split("\n")
  originals = [line for line in lines if len(line.split()) >= 20]
  found: dict[str, Any] = {"documents": len(originals), "megabytes": round(sum(map(len, originals)) / 1e6, 2), "rows": []}
  for ngram, threshold in SETTINGS:
    near = Near(threshold, ngram)
    alone = set(range(len(originals))) - stays(near, originals)  # near-duplicates that the corpus has by itself
    for rate in RATES:
      found["rows"].append({"ngram": ngram, "threshold": threshold, "changed": rate} | measure(near, originals, rate, alone))
      print(found["rows"][-1])
  Path(__file__).with_name("results.json").write_text(json.dumps(found, indent=1) + "\n")


def measure(near: Near, originals: list[str], rate: float, alone: set[int]) -> dict[str, Any]:
  """Figures of one rate of changes; `alone` are the documents that are taken out without any planted too.

  recall: of the pairs, those of which one document is taken out. precision: of all that are taken out, those of a pair or
  of `alone`. jaccard: a tenth, half and nine tenths of the pairs are below.
  """
  rng = random.Random(0)
  again = rng.sample(range(len(originals)), int(SHARE * len(originals)))
  pairs = {original: changed(originals[original], rate, rng) for original in again}
  order = [(original, False) for original in range(len(originals))] + [(original, True) for original in pairs]
  rng.shuffle(order)
  began = time.process_time()
  stayed = stays(near, [pairs[original] if is_copy else originals[original] for original, is_copy in order])
  seconds = time.process_time() - began
  out = [order[i] for i in range(len(order)) if i not in stayed]
  hit = {original for original, _ in out} & pairs.keys()
  explained = sum(original in pairs or original in alone for original, _ in out)
  similarity = sorted(jaccard(originals[original], copy, near.ngram) for original, copy in pairs.items())
  return {
    "jaccard": [round(similarity[len(similarity) * tenth // 10], 3) for tenth in (1, 5, 9)],
    "recall": round(len(hit) / len(pairs), 4),
    "precision": round(explained / max(len(out), 1), 4),
    "taken_out": len(out),
    "documents_per_cpu_sec": round(len(order) / seconds),
  }


def stays(near: Near, texts: list[str]) -> set[int]:
  """The numbers of the documents that are left."""
  documents = [Document(i, text) for i, text in enumerate(texts)]
  batches = (documents[i : i + BATCH] for i in range(0, len(documents), BATCH))
  return {document.number for batch in near.apply(batches, {}) for document in batch}


def changed(text: str, rate: float, rng: random.Random) -> str:
  """The text with this share of its words, at least one, replaced by others of it, dropped, or swapped with the next."""
  words = text.split()
  for _ in range(max(1, round(rate * len(words)))):
    at = rng.randrange(len(words) - 1)
    first, second = words[at : at + 2]
    words[at : at + 2] = rng.choice([[rng.choice(words), second], [second], [second, first]])
  return " ".join(words)


def jaccard(a: str, b: str, n: int) -> float:
  """Of the word n-grams, exactly."""
  grams = []
  for words in (re.findall(r"\w+", text.lower()) for text in (a, b)):
    grams.append({tuple(words[i : i + n]) for i in range(len(words) - n + 1)})
  return len(grams[0] & grams[1]) / max(len(grams[0] | grams[1]), 1)


if __name__ == "__main__":
  main()
