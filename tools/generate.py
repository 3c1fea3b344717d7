"""python -m tools.generate --workdir=runs/tiny --prompt="The with statement": continues a text with a trained model.

A model that was trained on conversations (sft, dpo) answers the prompt, in the template it was trained with.
"""

import argparse
import sys

import lm
from lm import config
from lm.main import set_up_process


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, help="of an autoregressive run")
  parser.add_argument("--prompt", default="", help="text to continue or to answer; empty starts a new document")
  parser.add_argument("--raw", action="store_true", help="continue the prompt as text, also of a run on conversations")
  parser.add_argument("--max_new_tokens", type=int, default=64)
  parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
  parser.add_argument("--top_k", type=int, default=50, help="0 keeps all")
  parser.add_argument("--top_p", type=float, default=1.0)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--dtype", default="auto", choices=config.DTYPES, help="that it computes in; auto: bfloat16 where fast")
  parser.add_argument("--num_samples", type=int, default=1)
  args = parser.parse_args()
  prompts = [args.prompt] * args.num_samples
  try:
    set_up_process()
    model = lm.load(args.workdir, dtype=args.dtype)
    trained = any(hasattr(task, "template") for task in model.tasks.values())
    answers = trained and not args.raw
    write = model.chat if answers else model.generate
    samples = write(prompts, args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for sample in samples:
    print(sample if answers else args.prompt + sample)
  return 0


if __name__ == "__main__":
  sys.exit(main())
