"""Entities in Chinese news, from a model that was pretrained on Chinese headlines here, and from random weights."""
