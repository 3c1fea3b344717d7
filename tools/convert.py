"""python -m tools.convert import|export|merge|check: between Hugging Face directories and workdirs.

import --from DIR_OR_ID --to OUT                       a workdir for config.init_from, which also takes DIR_OR_ID itself
export --from WORKDIR --to DIR [--push user/name]      a directory that transformers loads
export --from RUN --to DIR --adapter                   what the run trained alone, as the peft library loads it
merge DIR:0.7 DIR:0.3 --to OUT [--how svd]             LoRA adapters of one base (runs, directories of peft) as one
check --from DIR --input tokens.npz --output out.npz   what a checkpoint of either format computes
"""

import argparse
import sys

import jax

from lm import convert
from lm.adapters import HOW
from lm.config import ConfigError
from lm.files import local_path
from lm.interop.weights import TYPES
from lm.main import set_up_process

CPU_DEVICES = 32


def main() -> int:
  """Exit code: 0 done, 2 bad input."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  commands = parser.add_subparsers(dest="command", required=True)
  importing, exporting, merging, checking = map(commands.add_parser, ("import", "export", "merge", "check"))
  for command in (importing, exporting, checking):
    command.add_argument("--from", dest="source", required=True, help="workdir, Hugging Face directory, or id of the hub")
  for command in (importing, exporting, merging):
    command.add_argument("--to", type=local_path, required=True, help="folder to write, new or empty")
  exporting.add_argument("--checkpoint", default="last", help="of a workdir: last, best or a step")
  exporting.add_argument("--dtype", choices=tuple(TYPES), default="float32", help="of the tensors")
  exporting.add_argument("--adapter", action="store_true", help="of a run beside a base: as an adapter of it, not merged")
  exporting.add_argument("--push", default="", help="user/name to upload to")
  merging.add_argument("sources", nargs="+", metavar="PATH:WEIGHT", help="an adapter, and by how much it counts")
  merging.add_argument("--how", default="linear", choices=HOW, help="of the factors; of the products, exactly or near them")
  merging.add_argument("--rank", type=int, default=0, help="of the result of svd, 0: the largest of the adapters")
  checking.add_argument(
    "--input",
    type=local_path,
    required=True,
    help="npz with tokens [B, T], perhaps segment_ids, positions, attention_mask",
  )
  checking.add_argument(
    "--output", type=local_path, required=True, help="npz with logits, hidden_states [L + 1, B, T, D], pooled"
  )
  args = parser.parse_args()
  if args.command == "import":
    # The CPU counts as several devices, so that an import writes each parameter in parts.
    jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
  set_up_process()
  try:
    if args.command == "import":
      print(convert.import_checkpoint(args.source, args.to))
    elif args.command == "export":
      if args.adapter and args.dtype != "float32":
        raise ConfigError(f"--dtype={args.dtype}: an adapter is written in float32")
      if args.adapter:
        print(convert.export_adapter(args.source, args.to, args.checkpoint))
      else:
        print(convert.export_checkpoint(args.source, args.to, args.checkpoint, args.dtype))
      if args.push:
        print(convert.push(args.to, args.push))
    elif args.command == "merge":
      print(convert.merge_adapters(args.sources, args.to, args.how, args.rank))
    else:
      print(convert.check(args.source, args.input, args.output))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
