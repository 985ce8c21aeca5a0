"""The documentation: its pages, and the programs that make its pictures and read docstrings."""
