"""The strides of some layers as logarithms: limits, cost, and one factor that meets a budget."""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from math import exp, inf, log
from typing import NamedTuple

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.cost.pooling_cost import each_axis
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import Axis, Edge, plan_axis

Logs = dict[str, list[float]]  # logarithms of strides, by layer
Key = tuple[str, int]  # a layer and an axis, of a shared stride the first
Choose = Callable[[str, list[float], list[int]], tuple[list[float], list[Axis]]]
Limits = tuple[float, float]
Window = tuple[float, Edge, bool, bool]  # the settings of a layer's window

BEHIND = 2e-6  # how far a logarithm steps back behind a threshold: strides are stored in float32
FURTHEST = 24.0  # logarithm of the largest factor that is tried
JUST_ABOVE = (0.0, 1e-3, 0.01, 0.03, 0.1, 0.3)  # in logarithms: on long axes and on short ones
LARGEST = 30.0  # logarithm of the largest stride that is tried, where there is no limit
PROBE = log(2.0)  # how far a stride moves to see which maps follow
STRETCH = 3.0  # largest factor of the logarithms, before strides of 1 are raised too


class UnreachableBudgetError(ValueError):
    """No strides within the limits cost so little."""


class Fit(NamedTuple):
    """Strides, the MACs at them, and the axes of each layer in its first call."""

    logs: Logs
    cost: int
    maps: dict[str, Sequence[Axis]]


class Range(NamedTuple):
    """Logarithms of strides, from ``low`` to below ``high``, that lead to the same output size."""

    low: float
    high: float
    axis: Axis


class StrideSpace:
    """The strides at which a network can run, and its cost there.

    Args:
        cost: the cost of the network.
        layers: the layers whose strides vary, by name.
    """

    def __init__(self, cost: MultiplyAdds, layers: Mapping[str, DiffStride]) -> None:
        self.cost, self.layers = cost, layers
        self._last: dict[Key, Range] = {}
        self._order = [name for name in cost.order if name in layers]

        self.limits: dict[str, list[Limits]] = {
            name: [(log(low), log(high)) for low, high in layer.limits]
            for name, layer in layers.items()
        }
        # Here, not in the first step of a training that needs them.
        self.maps_before = self._find_maps_before()
        self.maps_beside = self._find_maps_beside()
        self.layers_behind = self._find_layers_behind()

    def smallest(self) -> Logs:
        """All strides at their lower limits."""
        return {name: [low for low, _ in limits] for name, limits in self.limits.items()}

    def largest_value(self) -> int:
        """The MACs at the smallest strides, or a little above, where pooling is not free."""
        smallest = self.smallest().items()
        return max(
            self.value({name: [at + above for at in logs] for name, logs in smallest})
            for above in JUST_ABOVE
        )

    def value(self, logs: Logs) -> int:
        """The MACs at these strides, or at the `runnable` ones where a map would be empty."""
        return self.running(logs).cost

    def runnable(self, logs: Logs) -> Logs:
        """The nearest smaller strides at which no map is empty.

        Layers get the strides asked for in the order of their calls: early strides save most.
        """
        return self.running(logs).logs

    def fit(self, logs: Logs, choose: Choose | None = None) -> Fit:
        """Choose strides in the order of the calls, for the input size that those before leave.

        Args:
            logs: the strides wanted.
            choose: the logarithms to use in a layer and its axes there, by its name, the logarithms
                wanted and its input size; None to use those wanted.

        Raises:
            EmptyMapError: if a map is empty.
        """
        found: Logs = {}

        def plan(name: str, sizes: list[int]) -> list[Axis]:
            if name in found:  # a layer may be called again, at another resolution
                return self.axes(name, found[name], sizes)
            found[name], axes = (choose or self.unchanged)(name, logs[name], sizes)
            return axes

        cost, maps = self.cost.evaluate({name: partial(plan, name) for name in logs})
        return Fit(found, cost, maps)

    def axes(self, name: str, logs: list[float], sizes: list[int]) -> list[Axis]:
        """How a layer pools its axes, or at other strides of the same output size."""
        within = [
            min(max(at, low), high) for at, (low, high) in zip(logs, self.limits[name], strict=True)
        ]
        each = enumerate(zip(sizes, each_axis(within, len(sizes)), strict=True))
        return [self._axis((name, i), size, at) for i, (size, at) in each]

    def unchanged(
        self, name: str, logs: list[float], sizes: list[int]
    ) -> tuple[list[float], list[Axis]]:
        """The strides as they are wanted, for `fit`."""
        return logs, self.axes(name, logs, sizes)

    def nearest(self, key: Key, at: float, incoming: int, output_size: int) -> float:
        """The logarithm nearest to ``at``, within the limits, that leads to this output size."""
        name, i = key
        window, (low, high) = self.layers[name].window_settings, self.limits[name][i]
        present = self._axis(key, incoming, at).output_size
        if present > output_size:
            return max(at, min(high, first_log(window, incoming, output_size)))
        if present < output_size:
            return max(low, first_log(window, incoming, output_size - 1) - BEHIND)
        return at

    def _axis(self, key: Key, size: int, at: float) -> Axis:
        """An axis at the stride of a logarithm, or at another stride of the same output size.

        Most strides lead to the same size as when they were last asked for.
        """
        last = self._last.get(key)
        if last is not None and last.axis.size == size and last.low <= at < last.high:
            return last.axis
        window = self.layers[key[0]].window_settings
        axis = plan_at(window, size, at)
        low = first_log(window, size, axis.output_size)
        high = first_log(window, size, axis.output_size - 1) - BEHIND
        self._last[key] = Range(low, high, axis)
        return axis

    def running(self, logs: Logs) -> Fit:
        """The cost at the `runnable` strides."""
        if not self.cost.has_empty_maps:
            return self.fit(logs)
        try:
            return self.fit(logs, self._large_enough)
        except EmptyMapError:  # sizes depend on each other: try one axis after the other
            return self.fit(self._largest_runnable(logs))

    def nearest_each(
        self, name: str, logs: list[float], incoming: list[int], sizes: Mapping[Key, int]
    ) -> tuple[list[float], list[Axis]]:
        """The `nearest` strides of a layer for those of its output sizes that are given."""
        keys = [(name, i) for i in range(len(logs))]
        each = zip(keys, logs, incoming, strict=False)
        found = [self.nearest(k, at, n, sizes[k]) if k in sizes else at for k, at, n in each]
        return found, self.axes(name, found, incoming)

    def at_sizes(self, logs: Logs, sizes: Mapping[Key, int]) -> Fit | None:
        """The strides nearest to those wanted that lead to these sizes, as far as the limits allow.

        None if a map is empty there.
        """
        try:
            return self.fit(logs, partial(self.nearest_each, sizes=sizes))
        except EmptyMapError:
            return None

    def _find_maps_before(self) -> dict[Key, Key]:
        """For each axis of a layer, the stride of the layer before it whose map it pools."""
        start = self.smallest()
        base = self.fit(start).maps
        before: dict[Key, Key] = {}
        for name in self._order:
            for i in range(len(start[name])):
                moved = {each: list(logs) for each, logs in start.items()}
                low, high = self.limits[name][i]
                moved[name][i] = min(low + PROBE, high)
                maps = self.running(moved).maps
                for other in set(self._order) - {name}:
                    for k, (axis, first) in enumerate(zip(maps[other], base[other], strict=True)):
                        if axis.size != first.size:
                            before[other, k] = name, i  # later layers come last and stay
        return before

    def _find_maps_beside(self) -> dict[Key, set[Key]]:
        """For each axis of a layer, itself, the one before it and those behind it."""
        beside: dict[Key, set[Key]] = {
            (name, i): {(name, i)}
            for name, limits in self.limits.items()
            for i in range(len(limits))
        }
        for key, before in self.maps_before.items():
            beside[before].add(key)
            beside.setdefault(key, {key}).add(before)
        return beside

    def _find_layers_behind(self) -> dict[str, list[tuple[str, list[Key | None]]]]:
        """For each layer, itself and all layers behind it, in the order of the calls.

        Each with the axes of the layers before whose maps it pools, by axis.
        """
        maps = self.fit(self.smallest()).maps

        def first(name: str, i: int) -> Key | None:
            key = self.maps_before.get((name, i))
            shared = key is not None and len(self.limits[key[0]]) < len(maps[key[0]])
            return (key[0], i) if key and shared else key

        firsts = {name: [first(name, i) for i in range(len(maps[name]))] for name in self._order}
        behind = {}
        for start in self._order:
            found = {start}
            for name in self._order:
                found |= {name} if any(key and key[0] in found for key in firsts[name]) else set()
            behind[start] = [(name, firsts[name]) for name in self._order if name in found]
        return behind

    def size_slopes(self, logs: Logs) -> dict[Key, float]:
        """The derivatives of the cost by the size of each map, all others kept.

        Without the products of pooling layers.
        """
        slopes = self.cost.size_slopes(
            {name: partial(self.axes, name, logs[name]) for name in logs}
        )
        return {(name, i): slope for name, each in slopes.items() for i, slope in enumerate(each)}

    def _large_enough(
        self, name: str, logs: list[float], incoming: list[int]
    ) -> tuple[list[float], list[Axis]]:
        axes = self.axes(name, logs, incoming)
        least = {(name, i): self._least_sizes.get((name, i), 1) for i in range(len(logs))}
        raised = {
            key: size
            for (key, size), axis in zip(least.items(), axes, strict=False)
            if axis.output_size < size
        }
        return self.nearest_each(name, logs, incoming, raised) if raised else (logs, axes)

    @cached_property
    def _least_sizes(self) -> dict[Key, int]:
        """The output size of each axis below which a map is empty, even at the smallest strides.

        Only of axes whose stride sets nothing but this size.
        """
        smallest = self.smallest()
        maps, least = self.fit(smallest).maps, {}
        for name, logs in smallest.items():
            if self.cost.calls.count(name) > 1 or len(logs) < len(maps[name]):
                continue
            for i, axis in enumerate(maps[name]):
                fits = partial(self._runs_at, smallest, (name, i))
                least[name, i] = 1 + bisect_left(range(1, axis.output_size), True, key=fits)
        return least

    def _runs_at(self, logs: Logs, key: Key, output_size: int) -> bool:
        """Whether the network runs at these strides if one axis is made to have another size."""
        return self.at_sizes(logs, {key: output_size}) is not None

    def _largest_runnable(self, logs: Logs) -> Logs:
        """The `runnable` strides, by trying all strides behind an axis at their lower limits."""
        found = self.smallest()
        for name in self._order:
            values = found[name]
            for axis, (wanted, low) in enumerate(zip(logs[name], list(values), strict=True)):

                def fails(at: float, values: list[float] = values, axis: int = axis) -> bool:
                    values[axis] = at
                    return not self._runs(found)

                if fails(wanted):
                    values[axis] = max(low, threshold(fails, low, wanted) - BEHIND)
        return found

    def _runs(self, logs: Logs) -> bool:
        try:
            self.fit(logs)
        except EmptyMapError:
            return False
        return True


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
                min(max(value * factor + shift, low), high, LARGEST)
                for value, (low, high) in zip(values, space.limits[name], strict=True)
            ]
            for name, values in start.items()
        }

    def stretched(amount: float) -> Logs:
        return clamped(logs, exp(amount), 0.0)

    def shifted(amount: float) -> Logs:
        return clamped(logs, 1.0, amount)

    present = space.running(stretched(0.0))
    if least <= present.cost <= most:
        return present.logs
    stretch = Path(stretched, logs, _factor, log(STRETCH))
    for path in (stretch, Path(shifted, logs, _difference, FURTHEST)):
        found = _least_amount(path, space, most)
        if found is not None:
            return found.logs
    cheapest = space.value(shifted(FURTHEST))
    condition = " at which no map is empty" if space.cost.has_empty_maps else ""
    raise UnreachableBudgetError(
        f"a budget of {most:,.0f} multiply-adds cannot be met: raise it, or the upper_limit_stride "
        f"of layers; at the largest strides{condition} the network costs {cheapest:,}"
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
        return space.running(path.at(amount))

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
        for value, axis in zip(each_axis(start, len(axes)), axes, strict=True):
            window = space.layers[name].window_settings
            at = first_log(window, axis.size, axis.output_size)
            found.append((path.amount(value, at), path.amount(value, at - BEHIND)))
    return max(found)


def as_stored(logs: Iterable[float]) -> list[float]:
    """The strides of these logarithms, rounded to float32 as in a layer.

    A stride may lie where the size of a map changes, and there the rounding decides.
    """
    return in_float32(map(exp, logs))


def in_float32(numbers: Iterable[float]) -> list[float]:
    """The nearest float32 of each number."""
    return array("f", numbers).tolist()


@lru_cache(maxsize=1 << 12)
def plan_at(window: Window, size: int, at: float) -> Axis:
    """How an axis is pooled at the stride of a logarithm."""
    (stride,) = as_stored([at])
    return plan_axis(size, stride, *window)


@lru_cache(maxsize=1 << 14)
def first_log(window: Window, size: int, output_size: int) -> float:
    """The logarithm of the smallest stride that makes at most ``output_size`` of ``size`` samples.

    >>> window = 4.0, "stopband", True, True
    >>> round(exp(first_log(window, 32, 20)), 4)  # 32 / 20
    1.6
    """

    def holds(at: float) -> bool:
        (stride,) = as_stored([at])
        return plan_axis(size, stride, *window).output_size <= output_size

    low, high = 0.0, log(2 * size)
    about = log(size / output_size) if output_size else high
    if holds(about + 1e-5) and not holds(about - 1e-5):  # without a passband edge
        low, high = about - 1e-5, about + 1e-5
    return threshold(holds, low, high)


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
