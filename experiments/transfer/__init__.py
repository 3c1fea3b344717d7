"""What should stand between pretraining and a task?"""
