"""Shapes that BENCHMARKS.md has figures of."""
