"""Preferences on a small decoder."""
