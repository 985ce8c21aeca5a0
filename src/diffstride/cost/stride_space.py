"""The strides of some layers as logarithms: limits, cost, and one factor that meets a budget."""

from array import array
from collections.abc import Callable, Iterable, Mapping
from math import exp, inf, log

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.pooling.learnable import DiffStride

Logs = dict[str, list[float]]  # logarithms of strides, by layer

BEHIND = 2e-6  # how far a logarithm steps back behind a threshold: strides are stored in float32
FURTHEST = 24.0  # logarithm of the largest factor that is tried
LARGEST = 30.0  # logarithm of the largest stride that is tried, where there is no limit


class StrideSpace:
    """The strides at which a network can run, and its cost there.

    Args:
        cost: the cost of the network.
        layers: the layers whose strides vary, by name.
    """

    def __init__(self, cost: MultiplyAdds, layers: Mapping[str, DiffStride]) -> None:
        self.cost, self.layers = cost, layers
        self._order = [name for name in cost.order if name in layers]

    def limits(self, name: str) -> tuple[float, float]:
        """The logarithms of a layer's smallest and largest stride."""
        layer = self.layers[name]
        return log(layer.lower_limit_stride or 1.0), log(layer.upper_limit_stride or inf)

    def smallest(self) -> Logs:
        """All strides at their lower limits."""
        sizes = {name: len(layer.strides) for name, layer in self.layers.items()}
        return {name: [self.limits(name)[0]] * size for name, size in sizes.items()}

    def value(self, logs: Logs) -> int:
        """The MACs at these strides, or at the `runnable` ones where a map would be empty."""
        try:
            return self.cost.value(_all_stored(logs))
        except EmptyMapError:
            return self.cost.value(_all_stored(self.runnable(logs)))

    def runnable(self, logs: Logs) -> Logs:
        """The nearest smaller strides at which no map is empty.

        Layers get the strides asked for in the order of their calls: early strides save most.
        """
        if not self.cost.has_empty_maps or self._runs(logs):
            return logs
        found = self.smallest()
        for name in self._order:
            low, values = self.limits(name)[0], found[name]
            for axis, wanted in enumerate(logs[name]):

                def fails(at: float, values: list[float] = values, axis: int = axis) -> bool:
                    values[axis] = at
                    return not self._runs(found)

                if fails(wanted):
                    values[axis] = max(low, threshold(fails, low, wanted) - BEHIND)
        return found

    def _runs(self, logs: Logs) -> bool:
        try:
            self.cost.maps(_all_stored(logs))
        except EmptyMapError:
            return False
        return True


def scale_to_budget(logs: Logs, space: StrideSpace, least: float, most: float) -> Logs:
    """Multiply the logarithms of strides by the smallest factor that keeps the budget ``most``.

    The factor is 1 if the cost is from ``least`` to ``most`` as it is. Where no factor is enough,
    a number is added to all logarithms. The result is within the limits of the layers, and no map
    is empty.

    Raises:
        ValueError: if there is no such factor.
    """

    def clamped(start: Logs, factor: float, shift: float) -> Logs:
        limits = {name: space.limits(name) for name in start}
        return {
            name: [min(max(v * factor + shift, low), high, LARGEST) for v in start[name]]
            for name, (low, high) in limits.items()
        }

    def stretched(amount: float) -> Logs:
        return clamped(logs, exp(amount), 0.0)

    def shifted(amount: float) -> Logs:
        return clamped(stretched(FURTHEST), 1.0, amount)

    if least <= space.value(stretched(0.0)) <= most:
        return space.runnable(stretched(0.0))
    for path in (stretched, shifted):
        amount = _least_amount(path, space, most)
        if amount is not None:
            return space.runnable(path(amount))
    cheapest = space.value(shifted(FURTHEST))
    condition = " at which no map is empty" if space.cost.has_empty_maps else ""
    raise ValueError(
        f"a budget of {most:,.0f} multiply-adds cannot be met: at the largest strides{condition} "
        f"the network costs {cheapest:,}"
    )


def _least_amount(path: Callable[[float], Logs], space: StrideSpace, most: float) -> float | None:
    """The least amount at which the network costs at most ``most``; None if there is none."""

    def affords(amount: float) -> bool:
        return space.value(path(amount)) <= most

    reach = 1e-3  # steps of optimisers are small
    while reach < FURTHEST and not (affords(reach) and not affords(-reach)):
        reach *= 4
    reach = min(reach, FURTHEST)
    return threshold(affords, -reach, reach) if affords(reach) else None


def _all_stored(logs: Logs) -> dict[str, list[float]]:
    return {name: as_stored(values) for name, values in logs.items()}


def as_stored(logs: Iterable[float]) -> list[float]:
    """The strides of these logarithms, rounded to float32 as in a layer.

    A stride may lie where the size of a map changes, and there the rounding decides.
    """
    return array("f", map(exp, logs)).tolist()


def threshold(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest value from which on a condition holds, by bisection; ``high`` if there is none.

    >>> round(threshold(lambda x: x * x >= 2, 0.0, 4.0), 4)
    1.4142
    """
    if holds(low):
        return low
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high + 5e-7  # strides are stored in float32: stay on the side where it holds
