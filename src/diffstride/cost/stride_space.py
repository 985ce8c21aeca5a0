"""The strides of some layers of a network as logarithms, with their limits and their cost."""

from array import array
from collections.abc import Callable, Iterable, Mapping
from math import exp, inf, log

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.pooling.learnable import DiffStride

Logs = dict[str, list[float]]  # logarithms of strides, by layer

BEHIND = 2e-6  # how far a logarithm steps back behind a threshold: strides are stored in float32


class StrideSpace:
    """The points at which a network can run, and what it costs there.

    Args:
        cost: the cost of the network.
        layers: the layers whose strides vary, by name.
    """

    def __init__(self, cost: MultiplyAdds, layers: Mapping[str, DiffStride]) -> None:
        self.cost, self.layers = cost, layers
        self._order = [name for name in cost.order if name in layers]

    @property
    def has_empty_maps(self) -> bool:
        """Whether there are strides at which a map is empty."""
        return self.cost.may_vanish

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
            return self._value(logs)
        except EmptyMapError:
            return self._value(self.runnable(logs))

    def _value(self, logs: Logs) -> int:
        return self.cost.value({name: as_stored(values) for name, values in logs.items()})

    def runnable(self, logs: Logs) -> Logs:
        """The nearest smaller strides at which no map is empty.

        Layers get the strides asked for in the order of their calls, as far as possible: early
        strides save most.
        """
        if not self.has_empty_maps or self._runs(logs):
            return logs
        found = self.smallest()
        for name in self._order:
            for axis, value in enumerate(logs[name]):
                self._raise(found, name, axis, value)
        return found

    def _raise(self, found: Logs, name: str, axis: int, value: float) -> None:
        """Raise a stride to ``value``, or as far as the network runs."""
        low = found[name][axis]

        def fails(at: float) -> bool:
            found[name][axis] = at
            return not self._runs(found)

        if fails(value):
            found[name][axis] = max(low, threshold(fails, low, value) - BEHIND)

    def _runs(self, logs: Logs) -> bool:
        try:
            self.cost.maps({name: as_stored(values) for name, values in logs.items()})
        except EmptyMapError:
            return False
        return True


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
