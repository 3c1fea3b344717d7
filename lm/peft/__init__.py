"""One file per fine-tuning method: which parameters train, what is added around the model, how it folds back."""
