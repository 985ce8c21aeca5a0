"""Scale strides to a budget by one factor of their logarithms."""

from collections.abc import Callable
from math import exp, inf, log
from typing import NamedTuple

from diffstride.cost.pooling_cost import each_axis
from diffstride.cost.size_thresholds import BEHIND, as_stored, first_log
from diffstride.cost.stride_space import Fit, Logs, StrideSpace

FURTHEST = 24.0  # logarithm of the largest factor that is tried
LARGEST_LOG = 30.0  # of a stride that is tried, where there is no limit
STRETCH = 3.0  # largest factor of the logarithms, before strides of 1 are raised too


class UnreachableBudgetError(ValueError):
    """No strides within the limits cost so little.

    Args:
        message: what cannot be met, and why.
        costliest: name of the module that costs most at the largest strides.
    """

    def __init__(self, message: str, costliest: str = "") -> None:
        super().__init__(message)
        self.costliest = costliest


def scale_to_budget(logs: Logs, space: StrideSpace, least: float, most: float) -> Logs:
    """Multiply the logarithms of strides by the smallest factor that keeps the budget ``most``.

    The factor is 1 if the cost is from ``least`` to ``most`` as it is. A stride of 1, where nothing
    is pooled, stays. Where a factor of `STRETCH` is not enough, all strides are multiplied by one
    factor instead, those of 1 too. The result is within the limits of the layers, and no map is
    empty.

    Raises:
        UnreachableBudgetError: if there is no such factor.
    """

    def clamped(start: Logs, factor: float, shift: float) -> Logs:
        return {
            name: [
                min(max(value * factor + shift, low), high, LARGEST_LOG)
                for value, (low, high) in zip(values, space.limits[name], strict=True)
            ]
            for name, values in start.items()
        }

    def stretched(amount: float) -> Logs:
        return clamped(logs, exp(amount), 0.0)

    def shifted(amount: float) -> Logs:
        return clamped(logs, 1.0, amount)

    present = space.runnable(stretched(0.0))
    if least <= present.cost <= most:
        return present.logs
    stretch = Path(stretched, logs, _factor, log(STRETCH))
    for path in (stretch, Path(shifted, logs, _difference, FURTHEST)):
        found = _least_amount(path, space, most)
        if found is not None:
            return found.logs
    raise _unreachable(space, space.runnable(shifted(FURTHEST)), most)


def _unreachable(space: StrideSpace, cheapest: Fit, most: float) -> UnreachableBudgetError:
    """Why a budget cannot be met, and what can be changed."""
    is_limited = any(high < LARGEST_LOG for each in space.limits.values() for _, high in each)
    limits = ", or the upper_limit_stride of layers" if is_limited else ""
    condition = " at which no map is empty" if space.cost.has_empty_maps else ""
    costs = space.cost.by_module({name: as_stored(logs) for name, logs in cheapest.logs.items()})
    costliest = max(costs, key=costs.__getitem__)
    return UnreachableBudgetError(
        f"a budget of {most:,.0f} multiply-adds cannot be met: raise it{limits}; at the largest "
        f"strides{condition} the network costs {cheapest.cost:,}, and {costliest!r} most, "
        f"{costs[costliest]:,}",
        costliest,
    )


class Path(NamedTuple):
    """Strides that grow with an amount, of ``most`` at most.

    ``at`` gives their logarithms at an amount, and ``amount(x, y)`` the amount at which one that is
    ``x`` in ``start`` is ``y``.
    """

    at: Callable[[float], Logs]
    start: Logs
    amount: Callable[[float, float], float]
    most: float


def _factor(start: float, at: float) -> float:
    return log(at / start) if min(start, at) > 0 else -inf


def _difference(start: float, at: float) -> float:
    return at - start


def _least_amount(path: Path, space: StrideSpace, most: float) -> Fit | None:
    """The strides of the least amount that cost at most ``most``; None if there is none."""

    def run(amount: float) -> Fit:
        return space.runnable(path.at(amount))

    low = high = 0.0
    found = above = run(0.0)
    step = max(1e-3, 0.5 * abs(log(max(found.cost, 1) / most)))  # strides of 2 need about as much
    while found.cost > most:
        if high >= path.most:
            return None
        low, above, high = high, found, min(max(2 * high, step), path.most)
        found = run(high)
    while above.cost <= most:
        if low <= -FURTHEST:
            return above
        high, found, low = low, above, max(min(2 * low, -step), -FURTHEST)
        above = run(low)
    while high - low > 1e-7:
        # Where the map sizes of ``high`` begin, and before: the cost changes nowhere else.
        first, before = _beginning(path, space, found)
        if before <= low:
            least = run(min(first, high))
            return least if least.cost <= most else found
        share = (above.cost - most) / max(above.cost - found.cost, 1)  # if the cost were linear
        amount = min(low + min(max(share, 0.25), 0.75) * (high - low), before)
        fit = run(amount)
        if fit.cost <= most:
            found, high = fit, amount
        else:
            low, above = amount, fit
    # Strides are stored in float32: stay on the side where the budget is met.
    return run(high + 5e-7)


def _beginning(path: Path, space: StrideSpace, fit: Fit) -> tuple[float, float]:
    """The least amount with the same map sizes as ``fit``, and one just below."""
    found = []
    for name, start in path.start.items():
        axes = fit.maps[name]
        each = space.layers[name].axis_settings
        for value, axis, settings in zip(each_axis(start, len(axes)), axes, each, strict=True):
            at = first_log(settings, axis.size, axis.output_size)
            found.append((path.amount(value, at), path.amount(value, at - BEHIND)))
    return max(found)
