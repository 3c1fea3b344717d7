"""Tests of lm/peft beyond the contracts."""
