"""What a GPU makes of the library: `python -m benchmarks.gpu PART`, see the README beside this."""
