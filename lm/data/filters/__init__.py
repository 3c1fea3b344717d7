"""What takes documents out of a corpus, or changes their text: one file per filter, which is its registration."""
