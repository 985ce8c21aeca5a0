"""Project a gradient step onto constant cost, with box constraints."""

from bisect import bisect_left
from collections.abc import Sequence
from math import inf


def project_step(
    step: Sequence[float],
    slopes: Sequence[float],
    at_lowest: Sequence[bool],
    at_highest: Sequence[bool],
) -> list[float]:
    """The part of a step along which the cost stays constant, to first order.

    ``d_i - λ g_i``, clamped to at least 0 at a lower limit and to at most 0 at an upper one, for a
    step ``d`` and the cost's gradient ``g``, with the ``λ`` for which the result is orthogonal to
    ``g``: of all such steps the nearest to ``d``. Gradient descent then converges where, except for
    strides at their limits, the gradient of the loss is a multiple of ``g``: no exchange of one
    stride for another at the same cost lowers the loss. Scaling all strides after each step does
    not have that property.

    Reference: J. B. Rosen, *The Gradient Projection Method for Nonlinear Programming*, 1960.

    Args:
        step: how far the optimiser moved each stride, limits or not.
        slopes: derivative of the cost by each stride.
        at_lowest: which strides are at their lower limit.
        at_highest: which are at their upper limit.

    >>> no, yes = [False, False], [True, True]
    >>> project_step([1.0, 0.0], [1.0, 1.0], no, no)
    [0.5, -0.5]
    >>> project_step([1.0, 0.0], [1.0, 1.0], no, yes)
    [0.0, 0.0]
    """

    lowest = [0.0 if low else -inf for low in at_lowest]
    highest = [0.0 if high else inf for high in at_highest]
    strides = list(zip(step, slopes, lowest, highest, strict=True))

    def moves(amount: float) -> list[float]:
        return [min(max(d - amount * g, low), high) for d, g, low, high in strides]

    def cost(amount: float) -> float:
        return sum(g * d for g, d in zip(slopes, moves(amount), strict=True))

    # The cost of the moves falls with λ, on a straight line between the kinks, where a stride
    # leaves its limit or reaches it. ``inside`` is between the two kinks around a cost of 0.
    kinks = sorted(d / g for d, g, low, high in strides if g and not low < 0 < high)
    ends = [kinks[0] - 1, *kinks, kinks[-1] + 1] if kinks else [0.0, 0.0]
    before = bisect_left(kinks, True, key=lambda amount: cost(amount) <= 0)
    inside = (ends[before] + ends[before + 1]) / 2
    free = [
        (d, g)
        for (d, g, low, high), move in zip(strides, moves(inside), strict=True)
        if low < move < high
    ]
    squares = sum(g * g for _, g in free)
    return moves(sum(d * g for d, g in free) / squares if squares else inside)
