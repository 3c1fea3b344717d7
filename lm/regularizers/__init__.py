"""One file per regularizer: what it adds to the loss of any task by running a batch again, with other noise or a push."""
