"""Time, memory and accuracy of the pooling beside its alternatives; see the Makefile."""
