"""The sizes and the cost of the feature maps that a pooling layer pools."""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import fx

from diffstride.graph.map_sizes import MapSizes, product, size_at
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.graph.stride_groups import StrideGroups
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import Axis

Sizes = dict[Hashable, float]  # output sizes, by call and axis
Slopes = dict[Hashable, float]  # derivatives of a cost by such sizes
StridesOrPlan = Sequence[float] | Callable[[list[int]], Sequence[Axis]]

CacheKey = TypeVar("CacheKey", bound=Hashable)
Result = TypeVar("Result")

KEPT = 4096  # how many results at different sizes are kept


class PooledMaps:
    """A pooling layer where a stride group calls it: input sizes, output sizes and cost.

    Args:
        groups: the stride groups of the network.
        sizes: its map sizes as functions of the sizes that pooling layers return.
        calls: the calls of the layer, all of one stride group.

    Raises:
        ValueError: if a size of the input does not follow from the strides before it.
    """

    def __init__(self, groups: StrideGroups, sizes: MapSizes, calls: list[fx.Node]) -> None:
        call, self._batch = calls[0], groups.trace.batch
        self.name = str(call.target)
        module = groups.trace.module(call)
        assert isinstance(module, SizedPooling)
        self.module = module
        try:
            self.inputs = [sizes.read(dim) for dim in groups.input_dims(call)]
            # Where rows or patches have joined the batch, their number depends on strides.
            maps = [product(map(sizes.read, groups.dims(call)[:2])) for call in calls]
        except LookupError as error:
            raise ValueError(
                f"the size of the maps that {self.name} ({type(self.module).__name__}) pools does "
                f"not follow from the strides before it in a way that is understood ({error}), so "
                "that the multiply-adds of the network are unknown"
            ) from error
        self._moving_maps = [each for each in maps if each.sources]
        self._maps = sum(each.scale for each in maps if not each.sources)
        # Of one map, by its sizes before and after pooling.
        self._costs: dict[tuple[float, ...], float] = {}
        self._slopes: dict[tuple[float, ...], tuple[list[float], list[float]]] = {}
        self._sources = [size.simplest for size in self.inputs]
        self.outputs = [(call.name, i) for i in range(len(self.inputs))]

    def pool(self, known: Sizes, strides: StridesOrPlan | None) -> Sequence[Axis]:
        """Plan the axes, and add the sizes of the output to the known ones.

        Args:
            known: the sizes that the layers before return; receives those of this layer.
            strides: strides of the layer, a function of its input size that plans its axes, or None
                for the layer's own.

        Raises:
            EmptyMapError: if the input is an empty map.
        """
        sizes = [round(size_at(source, known)) for source in self._sources]
        if min(sizes) < 1:
            raise EmptyMapError(f"the map that {self.name!r} pools", min(sizes))
        axes = strides(sizes) if callable(strides) else self._plan(sizes, strides)
        for key, axis in zip(self.outputs, axes, strict=True):
            known[key] = axis.output_size
        return axes

    def _plan(self, sizes: list[int], strides: Sequence[float] | None) -> Sequence[Axis]:
        values = self.module.stride_values() if strides is None else strides
        return self.module.plan(sizes, each_axis(values, len(sizes)))

    def cost(self, known: Sizes, axes: Sequence[Axis]) -> float:
        """Multiply-adds of the layer for one sample, given its axes from `pool`."""
        return self._cost_of_map(axes) * self._maps_at(known)

    def own_cost(self, axes: Sequence[Axis]) -> float:
        """As `cost`, without maps whose number depends on strides."""
        return self._cost_of_map(axes) * self._maps / self._batch

    def add_cost_slopes(self, known: Sizes, axes: Sequence[Axis], slopes: Slopes) -> None:
        """Add the derivatives of `cost` by all known sizes."""
        maps = self._maps_at(known)
        for size in self._moving_maps:
            size.add_slopes(known, self._cost_of_map(axes) / self._batch, slopes)
        by_size, by_output = self._slopes_of_map(axes)
        for size, slope in zip(self.inputs, by_size, strict=True):
            size.add_slopes(known, slope * maps, slopes)
        for key, slope in zip(self.outputs, by_output, strict=True):
            slopes[key] += slope * maps

    def stride_slopes(self, known: Sizes, axes: Sequence[Axis], slopes: Slopes) -> list[float]:
        """The derivatives of the network's cost by the stride of each axis.

        Args:
            known, axes: the sizes at these strides, and the axes from `pool`.
            slopes: derivatives of the network's cost by the output sizes of this layer; receives
                what the layers before contribute through the inputs of this one.
        """
        found = []
        for i, (size, key, axis) in enumerate(zip(self.inputs, self.outputs, axes, strict=True)):
            if i in self.module.fixed_axes:
                by_size, by_stride = 0.0, 0.0
            elif i in self.module.kept_axes:
                by_size, by_stride = 1.0, 0.0
            else:
                by_size, by_stride = self.module.size_slopes(axis)
            size.add_slopes(known, slopes[key] * by_size, slopes)
            found.append(slopes[key] * by_stride)
        return found

    def pass_on(self, known: Sizes, slopes: Slopes) -> None:
        """Add what the sizes behind the layer contribute, where they follow those before it."""
        for i, (size, key) in enumerate(zip(self.inputs, self.outputs, strict=True)):
            if i not in self.module.fixed_axes:
                size.add_slopes(known, slopes[key] * known[key] / size.at(known), slopes)

    def _maps_at(self, known: Sizes) -> float:
        """The number of maps that are pooled, for one sample."""
        return (self._maps + sum(size.at(known) for size in self._moving_maps)) / self._batch

    def _cost_of_map(self, axes: Sequence[Axis]) -> float:
        sizes, outputs = lengths(axes)
        key = *sizes, *outputs
        return remembered(self._costs, key, lambda: self.module.multiply_adds(axes, sizes, outputs))

    def _slopes_of_map(self, axes: Sequence[Axis]) -> tuple[list[float], list[float]]:
        """The derivatives of the cost of a map by its sizes before and after pooling."""
        sizes, outputs = lengths(axes)

        def differences(cost: Callable[[list[float]], float], at: list[float]) -> list[float]:
            return [cost(shifted(at, i, 0.5)) - cost(shifted(at, i, -0.5)) for i in range(len(at))]

        def compute() -> tuple[list[float], list[float]]:
            # Exact where the cost is linear or quadratic in each size.
            return (
                differences(lambda moved: self.module.multiply_adds(axes, moved, outputs), sizes),
                differences(lambda moved: self.module.multiply_adds(axes, sizes, moved), outputs),
            )

        return remembered(self._slopes, (*sizes, *outputs), compute)


def remembered(
    results: dict[CacheKey, Result], key: CacheKey, compute: Callable[[], Result]
) -> Result:
    """A result that is computed once, as long as no more than `KEPT` are."""
    if key not in results:
        if len(results) >= KEPT:
            results.clear()
        results[key] = compute()
    return results[key]


def lengths(axes: Sequence[Axis]) -> tuple[list[float], list[float]]:
    """The lengths of axes before and after pooling."""
    return [axis.size for axis in axes], [axis.output_size for axis in axes]


def each_axis(values: Sequence[float], axes: int) -> Sequence[float]:
    """The strides of all axes; a single one is shared."""
    return [*values] * axes if len(values) == 1 else values


def shifted(lengths: list[float], i: int, by: float) -> list[float]:
    return [*lengths[:i], lengths[i] + by, *lengths[i + 1 :]]
