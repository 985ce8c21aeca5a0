"""The sizes and the cost of the feature maps that a pooling layer pools."""

from collections.abc import Callable, Hashable, Sequence

from torch import fx

from diffstride.graph.map_sizes import MapSizes, product, size_at
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.graph.stride_groups import StrideGroups
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import Axis

Sizes = dict[Hashable, float]  # output sizes, by call and axis
Slopes = dict[Hashable, float]  # derivatives of a cost by such sizes
Strides = Sequence[float] | Callable[[list[int]], Sequence[Axis]]

# Differences over one sample are exact derivatives where the cost is linear or quadratic in a size.
KEPT_COSTS = 4096  # how many costs at different sizes are kept
HALVES = 0.5, -0.5


class PooledMaps:
    """A pooling layer where a stride group calls it: input sizes, output sizes and cost.

    Args:
        found: the stride groups of the network.
        sizes: its map sizes as functions of the sizes that pooling layers return.
        calls: the calls of the layer, all of one stride group.

    Raises:
        ValueError: if a size of the input does not follow from the strides before it.
    """

    def __init__(self, found: StrideGroups, sizes: MapSizes, calls: list[fx.Node]) -> None:
        self.call, self._batch = calls[0], found.trace.batch
        self.name = str(self.call.target)
        module = found.trace.module(self.call)
        assert isinstance(module, SizedPooling)
        self.module = module
        try:
            self.inputs = [sizes.read(dim) for dim in found.input_dims(self.call)]
            # Where rows or patches have joined the batch, their number depends on strides.
            self._maps = [product(map(sizes.read, found.dims(call)[:2])) for call in calls]
        except LookupError as error:
            raise ValueError(
                f"the size of the maps that {self.name} ({type(self.module).__name__}) pools does "
                f"not follow from the strides before it in a way that is understood ({error}), so "
                "that the multiply-adds of the network are unknown"
            ) from error
        self._costs: dict[tuple[float, ...], float] = {}  # of a map, by its sizes
        self._sources = [size.simplest for size in self.inputs]
        self.outputs = [(self.call, i) for i in range(len(self.inputs))]

    def pool(self, known: Sizes, strides: Strides | None) -> Sequence[Axis]:
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
        sizes, outputs = self._lengths(known)
        key = *sizes, *outputs
        if key not in self._costs:
            if len(self._costs) == KEPT_COSTS:
                self._costs.clear()
            self._costs[key] = self.module.multiply_adds(axes, sizes, outputs)
        return self._costs[key] * sum(size.at(known) for size in self._maps) / self._batch

    def add_cost_slopes(self, known: Sizes, axes: Sequence[Axis], slopes: Slopes) -> None:
        """Add the derivatives of `cost` by all known sizes."""
        sizes, outputs = self._lengths(known)
        maps = sum(size.at(known) for size in self._maps) / self._batch
        for size in self._maps:
            size.add_slopes(
                known, self.module.multiply_adds(axes, sizes, outputs) / self._batch, slopes
            )
        for i, size in enumerate(self.inputs):
            more, less = (
                self.module.multiply_adds(axes, shifted(sizes, i, by), outputs) for by in HALVES
            )
            size.add_slopes(known, (more - less) * maps, slopes)
        for i, key in enumerate(self.outputs):
            more, less = (
                self.module.multiply_adds(axes, sizes, shifted(outputs, i, by)) for by in HALVES
            )
            slopes[key] += (more - less) * maps

    def stride_slopes(self, known: Sizes, axes: Sequence[Axis], slopes: Slopes) -> list[float]:
        """The derivatives of the network's cost by the stride of each axis.

        Args:
            known, axes: the sizes at these strides, and the axes from `pool`.
            slopes: derivatives of the network's cost by the output sizes of this layer; receives
                what the layers before contribute through the inputs of this one.
        """
        found = []
        for size, key, axis in zip(self.inputs, self.outputs, axes, strict=True):
            by_size, by_stride = self.module.size_slopes(axis)
            size.add_slopes(known, slopes[key] * by_size, slopes)
            found.append(slopes[key] * by_stride)
        return found

    def _lengths(self, known: Sizes) -> tuple[list[float], list[float]]:
        sizes = [size_at(source, known) for source in self._sources]
        return sizes, [known[key] for key in self.outputs]


def each_axis(values: Sequence[float], axes: int) -> Sequence[float]:
    """The strides of all axes; a single one is shared."""
    return [*values] * axes if len(values) == 1 else values


def shifted(lengths: list[float], i: int, by: float) -> list[float]:
    return [*lengths[:i], lengths[i] + by, *lengths[i + 1 :]]
