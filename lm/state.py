"""Everything a run carries from step to step, as one value."""

from typing import Any

import flax.struct
import jax
import numpy as np

# The step from which something trains that never does.
NEVER = np.iinfo(np.int32).max

REFERENCE = "reference"  # names the part of `frozen` that is the start of what trains


class TrainState(flax.struct.PyTreeNode):
  """The parameters are held in two trees without common leaves; together they are the model.

  step: int32 scalar, optimizer steps taken. params: what trains. frozen: what does not; not saved, since it is rebuilt
  from the base. Where a task compares with the model that the run started from, `frozen["reference"]` holds what that model
  had in place of parameters that train or that the PEFT method changed, by their names. opt_state: the optimizer's, over
  `params`. peft_state: the PEFT method's own. loss_scale: {"scale", "good_steps", "skipped"} of float16 compute, else {}.
  average: what the optimizer moves, where `params` are an average of it, else {}.
  """

  step: jax.Array
  params: Any
  frozen: Any
  opt_state: Any
  peft_state: Any
  loss_scale: Any
  average: Any = flax.struct.field(default_factory=dict)
