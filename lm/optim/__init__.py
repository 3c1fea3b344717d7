"""One file per optimizer: its update rule, behind the schedule, clipping and decay that all share."""
