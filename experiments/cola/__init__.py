"""Is a sentence English?"""
