"""The training command, and short scripts to read and run."""
