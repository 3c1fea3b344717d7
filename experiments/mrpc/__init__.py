"""Do two sentences say the same?"""
