"""The sizes and the cost of the feature maps that a pooling layer pools."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import prod

from torch import fx

from diffstride.graph.map_sizes import MapSizes, Number, number, straight_through
from diffstride.graph.minimum_sizes import EmptyMapError
from diffstride.graph.stride_groups import StrideGroups
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import Axis


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
            self._maps = [list(map(sizes.read, found.dims(call)[:2])) for call in calls]
        except LookupError as error:
            raise ValueError(
                f"the size of the maps that {self.name} ({type(self.module).__name__}) pools does "
                f"not follow from the strides before it in a way that is understood ({error}), so "
                "that the multiply-adds of the network are unknown"
            ) from error

    def pool(
        self,
        known: dict[Hashable, Number],
        strides: Sequence[Number] | Callable[[list[int]], Sequence[Number]] | None,
    ) -> list[Axis]:
        """Plan the axes, and add the sizes of the output to the known ones.

        Args:
            known: the sizes that the layers before return; receives those of this layer.
            strides: strides of the layer, a function of its input size that returns them, or None
                for the layer's own.

        Raises:
            EmptyMapError: if the input is an empty map.
        """
        inputs = [size.at(known) for size in self.inputs]
        sizes = [round(number(size)) for size in inputs]
        if min(sizes) < 1:
            raise EmptyMapError(f"the map that {self.name!r} pools", min(sizes))
        given = strides(sizes) if callable(strides) else strides
        values = list(self.module.stride_values() if given is None else given)
        if len(values) == 1:
            values *= len(inputs)
        axes = list(self.module.plan(sizes, [number(value) for value in values]))
        for i, (axis, size, stride) in enumerate(zip(axes, inputs, values, strict=True)):
            # The slope is that at the stride in use, which may have been clamped.
            in_use = stride + (axis.stride - number(stride))
            unrounded = self.module.unrounded_size(size, in_use, axis)
            known[self.call, i] = straight_through(axis.output_size, unrounded)
        self._axes = axes
        return axes

    def cost(self, known: Mapping[Hashable, Number]) -> Number:
        """Multiply-adds of the layer for one sample, after `pool`."""
        sizes = [size.at(known) for size in self.inputs]
        outputs = [known[self.call, i] for i in range(len(sizes))]
        maps = sum(prod(size.at(known) for size in sizes) for sizes in self._maps)
        return self.module.multiply_adds(self._axes, sizes, outputs) * maps / self._batch
