"""Training of image classifiers by Gin configuration: data, loop, checkpoints, logs, command."""
