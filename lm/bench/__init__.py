"""Stopwatches, and what they compare with: `tools.bench`."""
