"""Multiply-adds of a network as a function of its strides."""

from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from diffstride._arguments import check_network
from diffstride._torch_compat import uncompiled
from diffstride.cost.consistency import (
    COST_TOLERANCE,
    MORE_STRIDE_FACTORS,
    STRIDE_FACTORS,
    check_same,
    costs_at,
    failed_at,
    numbers_read,
    scaled_strides,
)
from diffstride.cost.pooling_cost import PooledMaps, Sizes, Slopes, remembered
from diffstride.graph.example_inputs import also_named_example_inputs
from diffstride.graph.fake_run import NetworkRun, NetworkRunError, run_network
from diffstride.graph.leaf_modules import as_leaves
from diffstride.graph.map_sizes import MapSizes, SizeExpression, Source, moving_dims, size_at
from diffstride.graph.minimum_sizes import EmptyMapError, MinimumSizes
from diffstride.graph.moved_strides import find_groups_at_all_strides
from diffstride.graph.perturbed_sizes import Dim, proportional
from diffstride.graph.restoring import restoring
from diffstride.graph.stride_conflicts import StrideConflictError
from diffstride.graph.stride_groups import StrideGroups, unlearned_axes
from diffstride.graph.tracer import Trace, trace
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import CPU, Axis
from diffstride.strides import stride_layers

Strides = Mapping[str, Tensor | Sequence[float]]
Factors = tuple[SizeExpression, ...]


class MultiplyAdds:
    """Multiply-adds (MACs) of a network for one sample, as a function of its strides.

    ``sum over operations of c * product of the sizes of their maps``. Convolutions, linear layers
    and matrix products count as in torch's ``FlopCounterMode``, whose count is twice as high;
    recurrent and bilinear layers and products with vectors as the products in them, on every
    device. The pooling layers count one matrix product per axis, of which axes of 320 samples and
    more take about half. Axes of 1,024 samples and more, and signals, count as real Fourier
    transforms where these cost less, ``5/4 (N log2 N + M log2 M)`` for each line
    (`diffstride.spectral`). The value counts whole samples; its gradient is that of the sizes
    before rounding.

    The first input with spatial axes says how many samples there are. What several samples share,
    or each has many of (the frames of a video), counts as often as it is computed.

    The network is traced once, here; a call then takes well under a millisecond. The network itself
    runs on shapes alone, too, at its strides and at larger and smaller ones, to check the cost.

    Args:
        model: a network with `DiffStride` layers, its own or those of `convert`.
        example: an input, or several as for `convert`; only shapes matter.
        leaf_modules: as for `convert`; if there are none, those that it was given.

    Raises:
        ValueError: if the network cannot be traced, if branches with different strides meet, or if
            a cost does not follow from map sizes or a map size not from the strides.

    >>> from diffstride import DiffStride
    >>> net = nn.Sequential(DiffStride(2.0, edge="stopband"), nn.Conv2d(1, 1, 1))
    >>> cost = MultiplyAdds(net, torch.zeros(1, 1, 32, 32))
    >>> cost.value(), 16 * 32 * 32 + 16 * 16 * 32 + 16 * 16
    (24832, 24832)
    >>> cost.value({"0": (4.0, 4.0)})
    10304
    >>> cost().backward()
    >>> net[0].strides.grad
    tensor([-12416.,  -4224.])
    """

    @also_named_example_inputs
    def __init__(
        self, model: nn.Module, example: Any, leaf_modules: Iterable[str | type[nn.Module]] = ()
    ) -> None:
        check_network(model)
        model = uncompiled(model)  # the network inside one that is compiled
        _refuse_single_layer(model)
        self.layers: dict[str, Any] = stride_layers(model)
        leaf_modules = as_leaves(leaf_modules)
        with restoring(model):
            groups = self._analyse(trace(model, example, leaf_modules))
            self._verify(groups, lambda: run_network(model, example, groups.trace.fake_mode))

    def _analyse(self, traced: Trace) -> StrideGroups:
        calls = [
            node for node in traced.graph.nodes if isinstance(traced.module(node), SizedPooling)
        ]
        groups = self._find_groups(traced, calls)
        _check_shared(groups)
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
        return groups

    def _find_groups(self, traced: Trace, calls: list[fx.Node]) -> StrideGroups:
        """The stride groups of these calls of pooling layers.

        Fixed strides may meet strides of other modules, which are fixed as well. If so, the maps of
        their layers follow those before, and they are in no group.
        """
        layers: dict[fx.Node, Any] = {node: traced.module(node) for node in calls}
        unlearned = {node: unlearned_axes(layer) for node, layer in layers.items()}
        square = all(getattr(each, "shared_stride", each.fixes_size) for each in layers.values())
        others = [layer for layer in layers.values() if not layer.fixes_size]
        try:
            return find_groups_at_all_strides(traced, unlearned, square=square)
        except StrideConflictError:
            fixed = set(others).difference(self.layers.values())
            if not fixed:
                raise
            left = {node: axes for node, axes in unlearned.items() if layers[node] not in fixed}
            return find_groups_at_all_strides(traced, left, square=square)

    def _verify(self, groups: StrideGroups, run: Callable[[], NetworkRun]) -> None:
        """Run the network itself, at its own and at other strides, and compare costs and shapes.

        Raises:
            ValueError: if it fails, returns another shape or costs something else.
        """
        batch = groups.trace.batch
        with suppress(NetworkRunError):  # it reads numbers: only its parts can be traced
            check_same(groups.trace, run())
            self._verify_moved(batch, run, numbers_read(groups))

    def _verify_moved(self, batch: int, run: Callable[[], NetworkRun], readers: list[str]) -> None:
        for factor in (*STRIDE_FACTORS, *MORE_STRIDE_FACTORS * bool(readers)):
            with scaled_strides(self.layers.values(), factor) as moved, suppress(EmptyMapError):
                if moved:
                    self._verify_at(factor, batch, run, readers)

    def _verify_at(
        self, factor: float, batch: int, run: Callable[[], NetworkRun], readers: list[str]
    ) -> None:
        """Compare costs at the strides that the layers have now, `factor` times their own."""
        expected = self._sum(self._pool({})[0])
        try:
            actual = run().costs[""] / batch
        except NetworkRunError as error:
            if factor in STRIDE_FACTORS:
                raise ValueError(failed_at(factor, error, readers)) from error
            return
        if abs(expected - actual) > COST_TOLERANCE * actual:
            raise ValueError(costs_at(factor, expected, actual, readers))

    def __call__(self, strides: Strides | None = None) -> Tensor:
        """The cost as a float64 scalar, differentiable in the strides.

        Args:
            strides: strides to use instead of the layers' own, by the name of the layer.

        Raises:
            ValueError: if a map is empty at these strides.
        """
        own = {name: layer.strides for name, layer in self.layers.items()}
        given = own | dict(strides or {})
        for name, values in given.items():
            self._check(name, values)
        vectors = on_host([as_vector(values) for values in given.values()])
        each = iter(vectors.tolist())
        cost, slopes = self.slopes({n: list(islice(each, len(given[n]))) for n in given})
        flat = vectors.new_tensor([slope for name in given for slope in slopes[name]])
        return cost + flat @ (vectors - vectors.detach())

    def value(self, strides: Strides | None = None) -> int:
        """The cost as a whole number without a gradient, for searches; otherwise as a call."""
        return self.evaluate(self._as_numbers(strides or {}))[0]

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

    def slopes(self, strides: Strides) -> tuple[float, dict[str, list[float]]]:
        """The cost, and its derivatives by these strides of layers, as numbers.

        They are those of the sizes before rounding, where sizes meet at their whole values.
        """
        given = self._as_numbers(strides)
        known, pooled = self._pool(given)
        slopes = self._size_slopes(known)
        for maps, axes in zip(self._pooled_maps, pooled, strict=True):
            maps.add_cost_slopes(known, axes, slopes)
        by_stride = {name: [0.0] * len(values) for name, values in given.items()}
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

    def _size_slopes(self, known: Sizes) -> Slopes:
        slopes: Slopes = defaultdict(float)
        for factors, count in self._totals.items():
            SizeExpression(factors, count).add_slopes(known, 1.0, slopes)
        return slopes

    def pooling_cost(self, name: str, axes: Sequence[Axis]) -> float:
        """The MACs of the layer itself in its first call, where it pools its axes like this."""
        return self._first_maps[name].own_cost(axes)

    @property
    def order(self) -> list[str]:
        """The names of the stride layers, in the order of their first calls."""
        return list(dict.fromkeys(self.calls))

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

    def _as_numbers(self, strides: Strides) -> dict[str, list[float]]:
        """Strides from outside as numbers, checked."""
        for name, values in strides.items():
            self._check(name, values)
        return {name: as_numbers(values) for name, values in strides.items()}

    def _check(self, name: str, strides: Any) -> None:
        if name not in self.layers:
            raise ValueError(f"strides: the model has no stride layer named {name!r}")
        kind = type(self.layers[name])
        if getattr(kind, "plan", SizedPooling.plan) is SizedPooling.plan:
            raise ValueError(
                f"{name!r} is a {kind.__module__}.{kind.__name__}, whose cost is known only at its "
                "own strides: use diffstride.DiffStride"
            )
        axes = self.layers[name].num_axes
        numbers = isinstance(strides, Sequence) or (isinstance(strides, Tensor) and strides.dim())
        if not (numbers and len(strides) in (1, axes)):
            raise ValueError(
                f"strides: {name!r} takes {axes}, one for each axis, but got {strides!r}: pass a "
                "sequence or a tensor of one dimension"
            )

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


def _refuse_single_layer(model: nn.Module) -> None:
    if isinstance(model, SizedPooling):
        kind = type(model).__name__
        raise ValueError(
            f"the model is a single {kind}, whose own maps have no name: put it into a network, as "
            f"in nn.Sequential({kind}(...)); {kind}.output_size((32, 32)) is the size of its maps"
        )


def as_numbers(strides: Iterable[Any]) -> list[float]:
    """Strides, or scalar tensors, as numbers."""
    return [float(each.detach() if isinstance(each, Tensor) else each) for each in strides]


def as_vector(strides: Tensor | Sequence[Any]) -> Tensor:
    """Strides as one tensor, differentiable in those that are tensors."""
    if isinstance(strides, Tensor):
        return strides
    return torch.stack([torch.as_tensor(each, dtype=torch.float64, device=CPU) for each in strides])


def on_host(vectors: Sequence[Tensor]) -> Tensor:
    """All vectors as one on the CPU, in float64; off the CPU by one transfer."""
    if not vectors:
        return torch.zeros(0, dtype=torch.float64, device=CPU)
    return torch.cat([each.to(vectors[0].device) for each in vectors]).to(CPU, torch.float64)


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


def _check_shared(groups: StrideGroups) -> None:
    for calls in groups.members():
        names = {str(call.target) for call in calls}
        if len(names) > 1:
            raise ValueError(
                f"the maps of {' and '.join(sorted(map(repr, names)))} meet, but these layers do "
                "not share their strides: use one pooling layer for both"
            )
