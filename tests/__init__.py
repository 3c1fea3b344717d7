"""Tests mirror lm/."""
