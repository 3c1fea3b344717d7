"""The README.md of an exported model: what it is, what it was trained on, what it reached, the command, how to use it."""

import json
from collections.abc import Mapping
from typing import Any

PIPELINES = {
  "lm": "text-generation", "mlm": "fill-mask", "classifier": "text-classification", "tagger": "token-classification",
  "span": "question-answering", "chooser": "multiple-choice", "": "feature-extraction",
}  # fmt: skip
_CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [jax, lm]
---
# {name}

A {model_type} with {num_params:,} parameters ({class_name}), {made}.

```python
from transformers import {imports}

model = {use}"DIRECTORY OR ID")
```
{sections}"""

_ADAPTER_CARD = """---
library_name: peft
base_model: {base}
pipeline_tag: {pipeline}
tags: [jax, lm, {method}]
---
# {name}

A {method} adapter of `{base}` with {num_params:,} parameters (its head included), trained in JAX with lm {version}.

```python
from peft import PeftModel
from transformers import {imports}

base = {auto}.from_pretrained("{base}"{settings})
model = PeftModel.from_pretrained(base, "DIRECTORY OR ID")
```
{sections}"""
_AUTO = {
  "lm": "AutoModelForCausalLM", "mlm": "AutoModelForMaskedLM", "classifier": "AutoModelForSequenceClassification",
  "tagger": "AutoModelForTokenClassification", "span": "AutoModelForQuestionAnswering",
  "chooser": "AutoModelForMultipleChoice",
}  # fmt: skip


def make_card(name: str, kind: str, written: Mapping[str, Any], num_params: int, run: Mapping[str, Any]) -> str:
  """Markdown with the hub's metadata in front.

  Args:
    kind: of the head. written: the config.json. run: {"manifest", "summary", "config"} of the run that trained it, {} without.
  """
  has_pipeline = kind not in ("span", "chooser")  # transformers 5 has none for them
  return _CARD.format(
    pipeline=PIPELINES[kind],
    imports="pipeline" if has_pipeline else _AUTO[kind],
    use=f'pipeline("{PIPELINES[kind]}", ' if has_pipeline else f"{_AUTO[kind]}.from_pretrained(",
    name=name,
    model_type=written["model_type"],
    class_name=written["architectures"][0],
    num_params=num_params,
    made=f"trained in JAX with lm {run['manifest']['lm']}" if run.get("summary") else "written by lm",
    sections=_sections(run),
  )


def make_adapter_card(name: str, method: str, kind: str, base: str, run: Mapping[str, Any]) -> str:
  """The same of an adapter of peft. base: as transformers finds it. run: it is always one of ours."""
  has_labels = kind in ("classifier", "tagger")
  return _ADAPTER_CARD.format(
    pipeline=PIPELINES[kind],
    name=name,
    base=base,
    method=method,
    num_params=run["manifest"]["params"]["trainable"],
    version=run["manifest"]["lm"],
    imports=("AutoConfig, " if has_labels else "") + _AUTO[kind],
    auto=_AUTO[kind],
    settings=', config=AutoConfig.from_pretrained("DIRECTORY/head.json")' if has_labels else "",
    sections=_sections(run),
  )


def _sections(run: Mapping[str, Any]) -> str:
  if not run:
    return ""
  settings = json.dumps(run["config"], indent=2)
  parts = {
    "Training": _training(run),
    "Metrics": _metrics(run["summary"]),
    "All settings": f"<details>\n\n```json\n{settings}\n```\n</details>",
  }
  return "".join(f"\n## {title}\n{text}\n" for title, text in parts.items() if text)


def _training(run: Mapping[str, Any]) -> str:
  manifest = run["manifest"]
  if "source" in manifest:
    return f"- imported from `{manifest['source']}`"
  lines = [f"- command: `{manifest['command']}`", f"- steps: {manifest['total_steps']:,}"]
  lines += [f"- data `{name}`: fingerprint `{fingerprint}`" for name, fingerprint in manifest["data"].items()]
  if manifest["base"]:
    lines.append(f"- started from: `{run['config']['init_from']}`")
  return "\n".join(lines)


def _metrics(summary: Mapping[str, Any]) -> str:
  found = {name: value for name, value in summary.get("metrics", {}).items() if name.startswith("eval/")}
  if not found:
    return ""
  rows = [f"| {name.removeprefix('eval/')} | {value:.4f} |" for name, value in sorted(found.items())]
  return "\n".join(["| metric | value |", "|---|---:|", *rows])
