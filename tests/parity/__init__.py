"""Against transformers and peft, the oracles."""
