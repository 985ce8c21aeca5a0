"""Steps that change how a budget is shared out, and not how much of it is spent."""

import torch
from torch import Tensor


def level(steps: Tensor, slopes: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """The part of ``steps`` along which the cost stays as it is, to first order.

    ``min(max(d - λ g, 0 at a lower limit), 0 at an upper limit)`` for a step ``d`` and the cost's
    gradient ``g``, with that ``λ`` for which it is orthogonal to ``g``: the nearest to ``d`` of all
    such steps that lead out of no limit. So gradient descent comes to rest where, but for strides
    at their limits, the gradient of the loss is a multiple of ``g``: where no exchange of one
    stride for another at the same cost lowers the loss. Scaling all strides after each step is not
    enough for that: it comes to rest where the loss pulls at them in proportion to their size,
    whatever each of them costs.

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
    limited = lowest | highest

    def moves(amount: Tensor) -> Tensor:
        left = steps - amount * slopes
        left = torch.where(lowest, left.clamp(min=0), left)
        return torch.where(highest, left.clamp(max=0), left)

    # Where a stride at its limit stops. Between two of these the ones that move are the same.
    stops = (steps / slopes)[limited & (slopes != 0)].sort().values
    behind = sum(bool((slopes * moves(stop)).sum() > 0) for stop in stops)
    edges = torch.cat([stops[:1] - 1, stops, stops[-1:] + 1]) if len(stops) else stops.new_zeros(2)
    between = (edges[behind] + edges[behind + 1]) / 2
    along = slopes * (~limited | (moves(between) != 0))
    squares = along.square().sum()
    if not squares > 0:
        return moves(between)
    amount = (steps * along).sum() / squares
    if behind:
        amount = amount.clamp(min=stops[behind - 1])
    return moves(amount.clamp(max=stops[behind]) if behind < len(stops) else amount)
