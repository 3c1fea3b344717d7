"""How frozen kernels are kept in fewer bits while a fine-tuning method trains."""
