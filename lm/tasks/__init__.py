"""One file per objective: how an example becomes arrays, which head is read, what the loss sums are."""
