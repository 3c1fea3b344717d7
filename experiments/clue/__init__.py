"""The tasks of CLUE."""
