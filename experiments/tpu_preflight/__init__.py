"""Do the recipes in configs/ compile for the TPU slices that they are sized for, and fit?"""
