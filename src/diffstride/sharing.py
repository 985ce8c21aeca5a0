"""Steps that change how a budget is shared out, and not how much of it is spent."""

import torch
from torch import Tensor


def level(steps: Tensor, slopes: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The part of ``steps`` along which the cost stays as it is, to first order.

    ``d - g (d·g) / (g·g)`` for a step ``d`` and the cost's gradient ``g``: the step orthogonal to
    ``g`` that is nearest to ``d``. What is at a limit and would leave it stays where it is, and the
    others share the cost among them. So gradient descent comes to rest where the gradient of the
    loss is a multiple of ``g``: where no exchange of one stride for another at the same cost lowers
    the loss. Scaling all strides after each step is not enough for that: it comes to rest where the
    loss pulls at them in proportion to their size, whatever each of them costs.

    Reference: J. B. Rosen, *The Gradient Projection Method for Nonlinear Programming*, 1960.

    Args:
        steps: how far the optimiser moved each stride, limits or not.
        slopes: derivative of the cost by each, of the same shape.
        lowest: which strides are at their lower limit, of the same shape.
        highest: which are at their upper limit.

    >>> no = torch.zeros(2, dtype=torch.bool)
    >>> level(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), no, no)
    tensor([ 0.5000, -0.5000])
    >>> level(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), no, ~no)
    tensor([0., 0.])
    """
    free = torch.ones_like(lowest)
    while True:
        along = slopes * free
        part = (steps * along).sum() / along.square().sum().clamp(min=torch.finfo(steps.dtype).tiny)
        moves = (steps - part * along) * free
        leaving = (lowest & (moves < 0)) | (highest & (moves > 0))
        if not leaving.any():
            return moves
        free = free & ~leaving
