"""One file per fine-tuning method: how the peft library keeps it, as a value `FORMAT` that is read in both directions."""
