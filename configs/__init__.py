"""One runnable file per pretraining run."""
