"""Training on images as a Gin configuration says: data, loop, checkpoints, logs, command line."""
