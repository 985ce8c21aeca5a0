"""Analysis of a traced network: its calls, the strides they must share, the sizes of its maps."""
