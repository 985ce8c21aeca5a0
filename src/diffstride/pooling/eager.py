"""Pooling outside a compiled program; imported only while one is compiled.

The decorator imports the compiler, which takes longer to load than the rest of the library.
"""

import torch
from torch import Tensor, nn


@torch.compiler.disable
def call_eagerly(layer: nn.Module, x: Tensor) -> Tensor:
    """Pool ``x`` outside the compiled program, which would be outdated after each training step.

    The products gain nothing from compilation; the rest of the network is compiled.
    """
    return layer._pool(x)  # pyright: ignore[reportCallIssue]
