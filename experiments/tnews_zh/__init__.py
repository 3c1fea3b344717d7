"""Topics of Chinese headlines."""
