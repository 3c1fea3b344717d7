"""Recommendation from the texts of films, beside popularity and matrix factorisation."""
