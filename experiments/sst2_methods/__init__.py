"""Fine-tuning methods on SST-2: accuracy, trained parameters and speed, beside transformers and peft."""
