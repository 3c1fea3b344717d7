"""One evaluator per file: built with a run, called with parameters, yields (name, value)."""
