"""Intents of a bank's customers from 5, 10 and all examples of each, with a new head and with a pattern."""
