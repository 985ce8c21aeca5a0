"""By how much all strides are to be scaled for a network to cost what it may."""

from collections.abc import Callable, Iterable
from math import exp

from diffstride.cost.size_search import Logs, Spending, threshold

FURTHEST = 24.0  # logarithm of the largest factor that is tried
LARGEST = 30.0  # logarithm of the largest stride that is tried, where there is no limit

Path = Callable[[float], Logs]  # from an amount to strides: the more, the larger they are


def scaled(logs: Logs, spending: Spending, least: float, most: float) -> Logs:
    """The logarithms times the smallest factor at which the network costs no more than ``most``.

    If they cost ``least`` to ``most`` as they are, by the factor 1. Always within the limits of the
    layers, and such that no map vanishes.

    Raises:
        ValueError: if there is no such factor.
    """

    def clamped(name: str, values: Iterable[float]) -> list[float]:
        low, high = spending.limits(name)
        return [min(max(value, low), high, LARGEST) for value in values]

    def stretched(amount: float) -> Logs:
        factor = exp(amount)
        return {
            name: clamped(name, (value * factor for value in values))
            for name, values in logs.items()
        }

    def shifted(amount: float) -> Logs:
        # Where all strides that could be stretched are at their limits, or 1.
        return {
            name: clamped(name, (value + amount for value in values))
            for name, values in stretched(FURTHEST).items()
        }

    if least <= spending.value(stretched(0.0)) <= most:
        return spending.runnable(stretched(0.0))
    for path in (stretched, shifted):
        amount = _least_amount(path, spending, most)
        if amount is not None:
            return spending.runnable(path(amount))
    cheapest = spending.value(shifted(FURTHEST))
    limit = ", every map keeping a sample" if spending.may_vanish else ""
    raise ValueError(
        f"a budget of {most:,.0f} multiply-adds cannot be met: with all strides as large as they "
        f"may be{limit}, the network costs {cheapest:,}"
    )


def _least_amount(path: Path, spending: Spending, most: float) -> float | None:
    """The least amount at which the cost is no more than it may be; None if it never is."""

    def affords(amount: float) -> bool:
        return spending.value(path(amount)) <= most

    reach = 1e-3  # steps of optimisers are small
    while reach < FURTHEST and not (affords(reach) and not affords(-reach)):
        reach *= 4
    reach = min(reach, FURTHEST)
    return threshold(affords, -reach, reach) if affords(reach) else None
