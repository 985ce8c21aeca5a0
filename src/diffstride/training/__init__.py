"""Training of image classifiers by Gin configuration: data, loop, checkpoints, logs, command."""

from diffstride._extras import require

require("train", "diffstride.training")
