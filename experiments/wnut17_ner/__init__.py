"""Entities that nobody has seen before, in tweets: WNUT17, by the two schemes of tags."""
