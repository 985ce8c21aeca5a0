"""The cost of a network as a function of the sizes of its maps."""

from collections import defaultdict
from collections.abc import Container, Hashable, Mapping, Sequence
from math import prod
from typing import Any

from torch import fx

from diffstride.cost.pooling_cost import PooledMaps, Sizes, Slopes, remembered
from diffstride.graph.map_sizes import MapSizes, SizeExpression, Source, moving_dims, size_at
from diffstride.graph.minimum_sizes import MinimumSizes
from diffstride.graph.perturbed_sizes import Dim, proportional
from diffstride.graph.stride_groups import StrideGroups
from diffstride.spectral.axis_plan import Axis

Factors = tuple[SizeExpression, ...]


class CostOfSizes:
    """Base of `MultiplyAdds`: the sizes of all maps and the cost, for strides or plans of layers.

    Args:
        groups: the stride groups of a traced network.
        calls: the calls of all its pooling layers.
        layers: the layers whose strides may vary, by name.

    Raises:
        ValueError: a cost does not follow from map sizes, or a map size not from the strides.
    """

    def __init__(
        self, groups: StrideGroups, calls: list[fx.Node], layers: Mapping[str, Any]
    ) -> None:
        self.layers = layers
        sizes = MapSizes(groups)
        each = [*groups.members(), *([node] for node in calls if node not in groups.leaders)]
        each.sort(key=lambda group: calls.index(group[0]))
        # One for each layer and group: a layer that is called at two resolutions has two.
        self._pooled_maps = [PooledMaps(groups, sizes, calls) for calls in each]
        self._first_maps = {maps.name: maps for maps in reversed(self._pooled_maps)}
        self._minimum_sizes = MinimumSizes(groups, sizes)
        self._terms = _terms(groups, sizes)
        self._costs: dict[tuple[float, ...], float] = {}
        self._totals: dict[tuple[Source, ...], float] = defaultdict(float)
        for (_, factors), count in self._terms.items():
            self._totals[tuple(factor.simplest for factor in factors)] += count

    def maps(self) -> dict[str, Sequence[Axis]]:
        """How each layer pools its axes in its first call, at the present strides."""
        return self.evaluate({})[1]

    def all_maps(self) -> dict[str, Sequence[Axis]]:
        """As `maps`, and also for pooling layers that do not learn."""
        _, pooled = self._pool({})
        return self._by_layer(pooled, {maps.name for maps in self._pooled_maps})

    def evaluate(self, strides: Mapping[str, Any]) -> tuple[int, dict[str, Sequence[Axis]]]:
        """The results of `value` and of `maps` at these strides, which are not checked.

        In place of strides a layer may have a function that plans its axes, given its input size.
        Layers without an entry have their own strides.
        """
        known, pooled = self._pool(strides)
        return round(self._cost(known, pooled)), self._by_layer(pooled, self.layers)

    def slopes(
        self, strides: Mapping[str, Sequence[float]]
    ) -> tuple[float, dict[str, list[float]]]:
        """The cost, and its derivatives by these strides of layers, as numbers.

        They are those of the sizes before rounding, where sizes meet at their whole values.
        """
        known, pooled = self._pool(strides)
        slopes = self._size_slopes(known)
        for maps, axes in zip(self._pooled_maps, pooled, strict=True):
            maps.add_cost_slopes(known, axes, slopes)
        by_stride = {name: [0.0] * len(values) for name, values in strides.items()}
        for maps, axes in zip(reversed(self._pooled_maps), reversed(pooled), strict=True):
            by_axis, own = maps.stride_slopes(known, axes, slopes), by_stride.get(maps.name, [])
            for i, slope in enumerate(by_axis if own else ()):
                own[i % len(own)] += slope  # one for all, if shared
        return self._cost(known, pooled), by_stride

    def size_slopes(self, strides: Mapping[str, Any]) -> dict[str, list[float]]:
        """The derivatives of the cost without pooling layers by the output sizes of each layer.

        Args:
            strides: as for `evaluate`.
        """
        known, _ = self._pool(strides)
        slopes, first = self._size_slopes(known), self._first_maps.items()
        return {name: [slopes[key] for key in maps.outputs] for name, maps in first}

    def pooling_cost(self, name: str, axes: Sequence[Axis]) -> float:
        """The MACs of the layer itself in its first call, where it pools its axes like this."""
        return self._first_maps[name].own_cost(axes)

    def layers_on_maps(self, strides: Mapping[str, Any]) -> dict[str, list[float]]:
        """How many modules run on the map that each layer returns, for each of its axes.

        The derivative of the logarithm of a module's cost by that of the size, summed over all
        modules but pooling layers: 1 for each convolution, more where operands meet, as in
        attention. Maps behind layers without an entry in ``strides`` follow the map before them.

        Args:
            strides: as for `evaluate`.
        """
        known, _ = self._pool(strides)
        costs, found = self._by_module(known), defaultdict[Hashable, float](float)
        for (name, factors), count in self._terms.items():
            if costs[name]:
                SizeExpression(factors, count / costs[name]).add_slopes(known, 1.0, found)
        for maps in reversed(self._pooled_maps):
            if maps.name not in strides:
                maps.pass_on(known, found)
        first = self._first_maps.items()
        return {name: [found[key] * known[key] for key in maps.outputs] for name, maps in first}

    def axes_before(self, names: Container[str]) -> dict[tuple[str, int], tuple[str, int]]:
        """For each axis of a layer, the axis of the last of these layers whose map it pools."""
        known, _ = self._pool({})
        made: dict[Hashable, tuple[PooledMaps, int]] = {
            key: (maps, i) for maps in self._pooled_maps for i, key in enumerate(maps.outputs)
        }

        def before(maps: PooledMaps, i: int) -> tuple[str, int] | None:
            slopes: Slopes = defaultdict(float)
            maps.inputs[i].add_slopes(known, 1.0, slopes)
            nearest = next((key for key in reversed(known) if slopes[key]), None)
            if nearest is None:
                return None
            maker, axis = made[nearest]
            return (maker.name, axis) if maker.name in names else before(maker, axis)

        each = {
            (name, i): before(maps, i)
            for name, maps in self._first_maps.items()
            if name in names
            for i in range(len(maps.inputs))
        }
        return {key: found for key, found in each.items() if found}

    @property
    def calls(self) -> list[str]:
        """The names of the stride layers, as often as they are called at another resolution."""
        return [maps.name for maps in self._pooled_maps if maps.name in self.layers]

    @property
    def has_empty_maps(self) -> bool:
        """Whether there are strides at which a map is empty."""
        return bool(self._minimum_sizes)

    def by_module(self, strides: Mapping[str, Any] | None = None) -> dict[str, int]:
        """The cost by the name of the module; strides as for `evaluate`."""
        known, pooled = self._pool(strides or {})
        costs = self._by_module(known)
        for maps, axes in zip(self._pooled_maps, pooled, strict=True):
            costs[maps.name] += maps.cost(known, axes)
        return {name: round(cost) for name, cost in costs.items()}

    def _by_module(self, known: Sizes) -> defaultdict[str, float]:
        """The cost of each module but pooling layers."""
        costs: defaultdict[str, float] = defaultdict(float)
        for (name, factors), count in self._terms.items():
            costs[name] += count * prod(factor.at(known) for factor in factors)
        return costs

    def _size_slopes(self, known: Sizes) -> Slopes:
        slopes: Slopes = defaultdict(float)
        for factors, count in self._totals.items():
            SizeExpression(factors, count).add_slopes(known, 1.0, slopes)
        return slopes

    def _cost(self, known: Sizes, pooled: list[Sequence[Axis]]) -> float:
        """The cost at these output sizes, on which alone it depends."""

        def compute() -> float:
            each = zip(self._pooled_maps, pooled, strict=True)
            return sum(maps.cost(known, axes) for maps, axes in each) + self._sum(known)

        return remembered(self._costs, tuple(known.values()), compute)

    def _sum(self, known: Sizes) -> float:
        """The cost without pooling layers."""
        totals = self._totals.items()
        return sum(count * prod(size_at(size, known) for size in sizes) for sizes, count in totals)

    def _by_layer(
        self, pooled: list[Sequence[Axis]], names: Container[str]
    ) -> dict[str, Sequence[Axis]]:
        """The axes of the named layers, each in its first call."""
        calls = zip(reversed(self._pooled_maps), reversed(pooled), strict=True)
        return {maps.name: axes for maps, axes in calls if maps.name in names}

    def _pool(self, strides: Mapping[str, Any]) -> tuple[Sizes, list[Sequence[Axis]]]:
        """The output sizes of all layers, and how each layer pools its axes."""
        known: Sizes = {}
        pooled = [each.pool(known, strides.get(each.name)) for each in self._pooled_maps]
        self._minimum_sizes.check(known)
        return known, pooled


def _terms(groups: StrideGroups, sizes: MapSizes) -> dict[tuple[str, Factors], float]:
    """Multiply-adds per sample and unit of size, by module and map sizes."""
    terms: dict[tuple[str, Factors], float] = defaultdict(float)
    for node in groups.trace.operations:
        name = groups.trace.module_name(node)
        for cost in groups.costs(node):
            if any((cost.size, *cost.perturbed)):
                count, factors = _term(groups, sizes, node, cost)
                terms[name, factors] += count
    return terms


def _term(groups: StrideGroups, sizes: MapSizes, node: fx.Node, cost: Dim) -> tuple[float, Factors]:
    """One operation of a node: its multiply-adds per sample and unit of size, and map sizes."""
    dims = proportional(cost, moving_dims(node, groups), most=4) if cost.growth else ()
    try:
        if dims is None:
            raise LookupError(f"{cost.size:,} grew to {max(cost.perturbed):,}")
        factors = tuple(sizes.read(dim) for dim in dims)
    except LookupError as error:
        raise ValueError(
            f"the cost of {groups.trace.label(node)} is no product of the sizes of its maps, so "
            "that the multiply-adds of the network are unknown"
        ) from error
    return cost.size / groups.trace.batch / prod(dim.size for dim in dims), factors
