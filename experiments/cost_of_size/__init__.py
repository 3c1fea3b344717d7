"""How do the time of a step and of its compilation grow with the sizes of a model and of its batch?"""
