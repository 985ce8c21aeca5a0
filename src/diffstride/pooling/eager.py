"""What a compiled program leaves to eager execution; imported only while one is compiled.

The decorator imports the compiler, which takes longer to load than all the rest of the library.
"""

import torch
from torch import Tensor, nn


@torch.compiler.disable
def call_eagerly(layer: nn.Module, x: Tensor) -> Tensor:
    """Pool ``x`` outside the compiled program.

    While strides move, a program that holds them would be stale after every step. The products
    gain nothing from compilation; the rest of the network is compiled around them.
    """
    return layer._pool(x)  # pyright: ignore[reportCallIssue]
