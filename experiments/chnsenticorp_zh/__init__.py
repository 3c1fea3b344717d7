"""Sentiment of Chinese reviews."""
