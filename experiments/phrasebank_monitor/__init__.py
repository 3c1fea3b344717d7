"""The sentiment of financial news, sentence by sentence."""
