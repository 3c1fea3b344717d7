"""Tests of lm/regularizers."""
