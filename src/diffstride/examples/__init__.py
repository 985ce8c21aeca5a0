"""The training command, and short scripts to read and run."""

from diffstride._extras import require

require("train", "diffstride.examples")
