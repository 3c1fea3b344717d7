"""How alike are two sentences?"""
