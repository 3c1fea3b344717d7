"""Pretraining on real text from config files; see README.md."""
