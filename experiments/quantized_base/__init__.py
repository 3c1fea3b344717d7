"""What do quantised frozen kernels cost and save?"""
