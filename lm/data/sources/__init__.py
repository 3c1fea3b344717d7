"""One file per format: a source is random access to raw examples."""
