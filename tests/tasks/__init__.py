"""Tests of lm/tasks beyond the contracts."""
