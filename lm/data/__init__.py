"""Data as a pure function of the step: sources, tokenised stores, plans of rows, corruption, batches. numpy only."""
