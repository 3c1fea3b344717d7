"""python -m experiments.quantized_base.measure step|linear [--rounds=9]: the README beside it says what for.

`step`: LoRA's train step with and without a quantizer. `linear`: a stack of linear maps and its gradient, also with qwix, which
must be installed for it. All take turns; times are medians, other figures are those of the compiled function.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import build, config, plug
from lm.config import Plug

QUANTIZERS = {"none": None, "nf4": "nf4", "nf4, plain scales": "nf4(double=false)", "int8": "int8"}
MODEL = {"name": "llama-3.2-1b", "num_layers": 4, "model_dim": 512, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64}
LINEAR = ".*(attention/(query|key|value|out)|ffn/(gate|up|down))"
L, B, D = 8, 256, 1024  # layers, rows and dims of `linear`


def make_step(quantizer: str | None) -> tuple[Any, Callable[[], Any]]:
  """The compiled step, and a function that takes one."""
  text = {"name": "memory", "texts": tuple(f"{i} is followed by {i + 1}, " * 40 for i in range(64))}
  values = {"task": "causal", "data": text, "model": {**MODEL, "ffn_dim": 1408, "max_len": 512, "vocab_size": 0}}
  values |= {"tokenizer": "bytes", "peft": f"lora(rank=8,targets={LINEAR})"}
  values |= {"seq_len": 256, "batch_size": 2, "total_steps": 100}
  run = build.make_run(config.from_dict(values | {"quantizer": quantizer}), jax.devices()[:1])
  run.program.compile(run.loader.shapes(), [])
  batch, state = run.loader.batch(0), run.init_state()

  def take() -> Any:
    nonlocal state
    state, found = run.program.train(state, batch, run.noise_rng)
    return found["loss"]

  return run.program.train_step(batch), take


def make_linear(name: str) -> tuple[Any, Callable[[], Any]]:
  """The same of a scanned stack x -> tanh(x W): its value and gradient with respect to x."""
  kernel = jax.random.normal(jax.random.key(0), (L, D, D)) * D**-0.5
  x = jax.random.normal(jax.random.key(1), (B, D))
  packed, multiply = _of_qwix(name.split()[1], kernel) if name.startswith("qwix") else _of_ours(name, kernel)

  def loss(x, packed):
    return jnp.square(jax.lax.scan(lambda x, layer: (jnp.tanh(multiply(x, layer)), None), x, packed)[0]).sum()

  compiled = jax.jit(jax.value_and_grad(loss)).lower(x, packed).compile()
  return compiled, lambda: compiled(x, packed)[1]


def _of_ours(name: str, kernel: jax.Array) -> tuple[Any, Callable[..., jax.Array]]:
  if name == "none":
    return kernel, jnp.matmul
  quantizer = plug.make("quantizer", Plug(name))
  boxes = quantizer.pack(nn.LogicallyPartitioned(kernel, ("layers", "embed", "mlp")))
  packed = {leaf: box.value for leaf, box in boxes.items()}
  policy = jax.checkpoint_policies.dots_saveable
  return packed, jax.checkpoint(lambda x, layer: x @ quantizer.unpack(layer), policy=policy)


def _of_qwix(name: str, kernel: jax.Array) -> tuple[Any, Callable[..., jax.Array]]:
  from qwix._src.core import dot_general, qarray

  how = qarray.HowToQuantize(qtype=name if name == "nf4" else jnp.int8, channelwise_axes=(1,), tiled_axes={0: 64})
  packed = jax.tree.map(lambda *x: jnp.stack(x), *(qarray.quantize(layer, how) for layer in kernel))
  return packed, lambda x, layer: dot_general.dot_general(x, layer, (((1,), (0,)), ((), ())))


def measure(cases: dict[str, tuple[Any, Callable[[], Any]]], rounds: int) -> None:
  """Prints a line per case: median time and its ratio to the first, bytes of arguments and temporaries."""
  spent: dict[str, list[float]] = {name: [] for name in cases}
  for i in range(rounds + 2):
    for name, (_, take) in cases.items():
      start = time.perf_counter()
      jax.block_until_ready(take())
      spent[name] += [time.perf_counter() - start] if i >= 2 else []
  first = next(iter(spent.values()))
  for name, (compiled, _) in cases.items():
    memory, ratios = compiled.memory_analysis(), np.divide(spent[name], first)
    sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
    print(
      f"| {name} | {1e3 * statistics.median(spent[name]):.1f} | {np.median(ratios):.2f} | "
      + " | ".join(f"{size / 1e6:.2f}" for size in sizes)
      + " |"
    )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("step", "linear"))
  parser.add_argument("--rounds", type=int, default=9)
  args = parser.parse_args()
  if args.what == "step":
    cases = {name: functools.partial(make_step, quantizer) for name, quantizer in QUANTIZERS.items()}
  else:
    cases = {name: functools.partial(make_linear, name) for name in ("none", "nf4", "int8", "qwix nf4", "qwix int8")}
  print("| kernels | ms | ratio | arguments, MB | temporaries, MB |\n|---|---:|---:|---:|---:|")
  measure({name: make() for name, make in cases.items()}, args.rounds)


if __name__ == "__main__":
  main()
