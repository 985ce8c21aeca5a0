"""The strides of some layers as logarithms: their limits, and the cost of the network there."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from math import log
from typing import Any, NamedTuple, TypeVar

from diffstride.cost.multiply_adds import MultiplyAdds
from diffstride.cost.pooling_cost import each_axis
from diffstride.cost.size_thresholds import BEHIND, first_log, plan_at, threshold
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.pooling.learnable import DiffStride
from diffstride.spectral.axis_plan import Axis

Logs = dict[str, list[float]]  # logarithms of strides, by layer
Key = tuple[str, int]  # a layer and an axis, of a shared stride the first
OutputSizes = dict[Key, int]
Choose = Callable[[str, list[float], list[int]], tuple[list[float], list[Axis]]]
Limits = tuple[float, float]
Value = TypeVar("Value")

JUST_ABOVE = (0.0, 1e-3, 0.01, 0.03, 0.1, 0.3)  # in logarithms: on long axes and on short ones
AT_LIMIT = 1e-6  # distance of logarithms at which a stride counts as at its limit


class Fit(NamedTuple):
    """Strides, the MACs at them, and the axes of each layer in its first call."""

    logs: Logs
    cost: int
    maps: dict[str, Sequence[Axis]]

    @property
    def sizes(self) -> OutputSizes:
        """The sizes of all maps: a shared stride has that of its first axis."""
        return {
            (name, i): self.maps[name][i].output_size
            for name, logs in self.logs.items()
            for i in range(len(logs))
        }


class StrideSpace:
    """The strides at which a network can run, and its cost there.

    Args:
        cost: the cost of the network.
        layers: the layers whose strides vary, by name.
    """

    def __init__(self, cost: MultiplyAdds, layers: Mapping[str, DiffStride]) -> None:
        self.cost, self.layers = cost, layers
        self._settings = {name: layer.axis_settings for name, layer in layers.items()}
        self._order = [name for name in dict.fromkeys(cost.calls) if name in layers]

        self.limits: dict[str, list[Limits]] = {
            name: [(log(low), log(high)) for low, high in layer.limits]
            for name, layer in layers.items()
        }
        # Here, not in the first step of a training that needs them.
        before = cost.axes_before(layers)
        self.maps_before: dict[Key, Key] = {
            key: (name, min(i, len(self.limits[name]) - 1)) for key, (name, i) in before.items()
        }
        self.layers_behind = self._find_layers_behind(before)

    def at_lowest(self, logs: Logs) -> set[Key]:
        """The strides that are at their lower limit: no stride makes their map larger."""
        lowest = by_key(self.smallest())
        return {key for key, at in by_key(logs).items() if at <= lowest[key] + AT_LIMIT}

    def at_highest(self, logs: Logs) -> set[Key]:
        """The strides that are at their upper limit."""
        highest = by_key({name: [high for _, high in each] for name, each in self.limits.items()})
        return {key for key, at in by_key(logs).items() if at >= highest[key] - AT_LIMIT}

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
        return self.runnable(logs).cost

    def fit(self, logs: Logs, choose: Choose | None = None) -> Fit:
        """Choose strides in the order of the calls, for the input size that those before leave.

        Args:
            logs: the strides wanted.
            choose: the logarithms to use in a layer and its axes there, by its name, the logarithms
                wanted and its input size (default: those wanted).

        Raises:
            EmptyMapError: if a map is empty.
        """
        found: Logs = {}
        choose = choose or partial(self.nearest_each, sizes={})

        def plan(name: str, sizes: list[int]) -> list[Axis]:
            if name in found:  # a layer may be called again, at another resolution
                return self.axes(name, found[name], sizes)
            found[name], axes = choose(name, logs[name], sizes)
            return axes

        cost, maps = self.cost.evaluate({name: partial(plan, name) for name in logs})
        return Fit(found, cost, maps)

    def axes(self, name: str, logs: list[float], sizes: list[int]) -> list[Axis]:
        """How a layer pools its axes at these strides, within its limits."""
        within = [
            min(max(at, low), high) for at, (low, high) in zip(logs, self.limits[name], strict=True)
        ]
        each = zip(self._settings[name], sizes, each_axis(within, len(sizes)), strict=True)
        return [plan_at(settings, size, at) for settings, size, at in each]

    def nearest(self, key: Key, at: float, incoming: int, output_size: int) -> float:
        """The logarithm nearest to ``at``, within the limits, that leads to this output size."""
        name, i = key
        settings, (low, high) = self._settings[name][i], self.limits[name][i]
        present = plan_at(settings, incoming, at).output_size
        if present > output_size:
            return max(at, min(high, first_log(settings, incoming, output_size)))
        if present < output_size:
            return max(low, first_log(settings, incoming, output_size - 1) - BEHIND)
        return at

    def runnable(self, logs: Logs) -> Fit:
        """The nearest smaller strides at which no map is empty.

        Layers get the strides asked for in the order of their calls: early strides save most.
        """
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

        Args:
            logs: the strides wanted.
            sizes: the sizes of some maps, or of all.
        """
        try:
            return self.fit(logs, partial(self.nearest_each, sizes=sizes))
        except EmptyMapError:
            return None

    def _find_layers_behind(
        self, before: Mapping[Key, Key]
    ) -> dict[str, list[tuple[str, list[Key | None]]]]:
        """For each layer, itself and all layers behind it, in the order of the calls.

        Each with the axes of the layers before whose maps it pools, by axis.
        """
        axes = {name: range(self.layers[name].num_axes) for name in self._order}
        firsts = {name: [before.get((name, i)) for i in each] for name, each in axes.items()}
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
        return by_key(self.cost.size_slopes(self._plans(logs)))

    def layers_on_maps(self, logs: Logs) -> dict[Key, float]:
        """How many modules run on each map."""
        return by_key(self.cost.layers_on_maps(self._plans(logs)))

    def _plans(self, logs: Logs) -> dict[str, Any]:
        """What plans the axes of each layer at these strides, for `MultiplyAdds.evaluate`."""
        return {name: partial(self.axes, name, at) for name, at in logs.items()}

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

                def fits(size: int, key: Key = (name, i)) -> bool:
                    return self.at_sizes(smallest, {key: size}) is not None

                least[name, i] = 1 + bisect_left(range(1, axis.output_size), True, key=fits)
        return least

    def _largest_runnable(self, logs: Logs) -> Logs:
        """The `runnable` strides, by trying all strides behind an axis at their lower limits."""
        found = self.smallest()
        for name in self._order:
            values = found[name]
            for axis, (wanted, low) in enumerate(zip(logs[name], list(values), strict=True)):

                def fails(at: float, values: list[float] = values, axis: int = axis) -> bool:
                    values[axis] = at
                    return self.at_sizes(found, {}) is None

                if fails(wanted):
                    values[axis] = max(low, threshold(fails, low, wanted) - BEHIND)
        return found


def by_key(layers: Mapping[str, Sequence[Value]]) -> dict[Key, Value]:
    """What each layer has for its axes, by layer and axis.

    >>> by_key({"a": [0.5, 0.7], "b": [0.1]})
    {('a', 0): 0.5, ('a', 1): 0.7, ('b', 0): 0.1}
    """
    return {(name, i): value for name, each in layers.items() for i, value in enumerate(each)}
