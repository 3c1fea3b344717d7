"""One folder per question: hypothesis, command, result, verdict."""
