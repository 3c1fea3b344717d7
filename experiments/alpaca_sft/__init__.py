"""Instructions on a small decoder."""
