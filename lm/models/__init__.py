"""One transformer, its heads, and the presets that make it a family."""
