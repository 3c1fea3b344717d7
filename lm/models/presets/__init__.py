"""One file per family: published sizes as values of `TransformerConfig`, and nothing else."""
