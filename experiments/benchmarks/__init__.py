"""Which standard-library module is this docstring from?"""
