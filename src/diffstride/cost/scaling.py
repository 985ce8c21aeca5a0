"""Scale all strides by one factor, such that a network keeps a budget."""

from collections.abc import Callable
from math import exp

from diffstride.cost.stride_space import Logs, StrideSpace, threshold

FURTHEST = 24.0  # logarithm of the largest factor that is tried
LARGEST = 30.0  # logarithm of the largest stride that is tried, where there is no limit

Path = Callable[[float], Logs]  # from an amount to strides: the more, the larger they are


def scale_to_budget(logs: Logs, space: StrideSpace, least: float, most: float) -> Logs:
    """Multiply the logarithms of strides by the smallest factor that keeps the budget ``most``.

    The factor is 1 if the cost is from ``least`` to ``most`` as it is. The result is within the
    limits of the layers, and no map is empty.

    Raises:
        ValueError: if there is no such factor.
    """
    stretched, shifted = _paths(logs, space)
    if least <= space.value(stretched(0.0)) <= most:
        return space.runnable(stretched(0.0))
    for path in (stretched, shifted):
        amount = _least_amount(path, space, most)
        if amount is not None:
            return space.runnable(path(amount))
    cheapest = space.value(shifted(FURTHEST))
    condition = " at which no map is empty" if space.has_empty_maps else ""
    raise ValueError(
        f"a budget of {most:,.0f} multiply-adds cannot be met: at the largest strides{condition} "
        f"the network costs {cheapest:,}"
    )


def _paths(logs: Logs, space: StrideSpace) -> tuple[Path, Path]:
    """Two ways to larger strides: all to one power; where these are at limits, by one factor."""

    def clamped(factor: float, amount: float, start: Logs) -> Logs:
        result = {}
        for name, values in start.items():
            low, high = space.limits(name)
            result[name] = [min(max(v * factor + amount, low), high, LARGEST) for v in values]
        return result

    def stretched(amount: float) -> Logs:
        return clamped(exp(amount), 0.0, logs)

    def shifted(amount: float) -> Logs:
        return clamped(1.0, amount, stretched(FURTHEST))

    return stretched, shifted


def _least_amount(path: Path, space: StrideSpace, most: float) -> float | None:
    """The least amount at which the network costs at most ``most``; None if there is none."""

    def affords(amount: float) -> bool:
        return space.value(path(amount)) <= most

    reach = 1e-3  # steps of optimisers are small
    while reach < FURTHEST and not (affords(reach) and not affords(-reach)):
        reach *= 4
    reach = min(reach, FURTHEST)
    return threshold(affords, -reach, reach) if affords(reach) else None
