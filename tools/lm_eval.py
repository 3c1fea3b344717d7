"""python -m tools.lm_eval --model=DIR --tasks=hellaswag,arc_easy: asks a model what lm-evaluation-harness asks.

The model is a run's workdir, a Hugging Face directory or id, or an adapter of peft. Needs the package lm-eval:
pip install 'lm[eval]'. The evaluator `lm_eval` does the same while a run trains.
"""

import argparse
import sys
from pathlib import Path

import lm
from lm import config, device
from lm.evals.lm_eval import Questions
from lm.files import local_path
from lm.main import set_up_process


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", required=True, help="workdir, Hugging Face directory or id, or adapter")
  parser.add_argument("--checkpoint", default="last", help="of a workdir: last, best or a step")
  parser.add_argument("--tasks", required=True, help="names of tasks and groups of the harness, between commas")
  parser.add_argument("--include_path", default="", help="folder of YAML files of tasks, which are then the only ones")
  parser.add_argument("--num_fewshot", type=int, default=-1, help="solved examples in front of a question; -1 as its task says")
  parser.add_argument("--limit", type=int, default=0, help="examples of each task; 0 all")
  parser.add_argument("--max_new_tokens", type=int, default=0, help="of an answer that is generated; 0 as its task says")
  parser.add_argument("--batch_size", type=int, default=16, help="rows at a time")
  parser.add_argument("--dtype", default="float32", choices=config.DTYPES, help="that the model computes in")
  parser.add_argument("--output", type=local_path, default=Path(), help="folder for lm_eval.json")
  args = parser.parse_args()
  try:
    set_up_process()
    names = tuple(filter(None, args.tasks.split(",")))
    questions = Questions(
      names, args.include_path, args.num_fewshot, args.limit, args.max_new_tokens, args.batch_size
    )  # before the model is loaded, which may take long
    print(questions.tell(questions.ask(lm.load(args.model, args.checkpoint, dtype=args.dtype).engine), args.output))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  device.restart_with_huge_pages()
  sys.exit(main())
