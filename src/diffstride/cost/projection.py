"""Project a gradient step onto constant cost, with box constraints."""

from collections.abc import Sequence


def project_step(
    step: Sequence[float],
    slopes: Sequence[float],
    at_lowest: Sequence[bool],
    at_highest: Sequence[bool],
) -> list[float]:
    """The part of a step along which the cost stays constant, to first order.

    ``d_i - λ g_i``, clamped to at least 0 at a lower limit and to at most 0 at an upper one, for a
    step ``d`` and the cost's gradient ``g``, with the ``λ`` for which the result is orthogonal to
    ``g``: of all such steps the nearest to ``d``. Gradient descent then converges where, but for
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

    def moves(amount: float) -> list[float]:
        left = [d - amount * g for d, g in zip(step, slopes, strict=True)]
        left = [max(d, 0.0) if low else d for d, low in zip(left, at_lowest, strict=True)]
        return [min(d, 0.0) if high else d for d, high in zip(left, at_highest, strict=True)]

    def costs_more(amount: float) -> bool:
        return sum(g * d for g, d in zip(slopes, moves(amount), strict=True)) > 0

    # At either end each term g (d - λ g) has one sign, and clamping keeps it.
    reach = max((abs(d / g) for d, g in zip(step, slopes, strict=True) if g), default=0.0)
    low, high = -reach, reach
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if costs_more(middle) else (low, middle)
    return moves(high)
