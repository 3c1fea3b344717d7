"""How much host memory does an import take?"""
