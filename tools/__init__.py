"""Thin command lines over lm."""
