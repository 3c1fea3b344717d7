"""How many planted near-duplicates the filter `near` finds."""
