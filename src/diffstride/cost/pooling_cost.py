"""What a pooling layer makes of the sizes of maps, and what that costs, for `diffstride.cost`."""

from collections.abc import Hashable, Mapping
from math import inf, prod
from typing import Any

from torch import fx

from diffstride.graph.map_sizes import Number, Sizes, number, straight_through
from diffstride.graph.minimum_sizes import VanishedError
from diffstride.graph.stride_groups import Resolutions
from diffstride.pooling.fixed import FixedSpectralPooling
from diffstride.pooling.frozen import FrozenPooling
from diffstride.pooling.learnable import DiffStride
from diffstride.pooling.spatial import BlurPooling
from diffstride.spectral.autograd import axis_order
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.axis_product import counted_products


class PooledMaps:
    """A pooling layer at one resolution: from the sizes that come in to those that come out."""

    def __init__(self, found: Resolutions, sizes: Sizes, calls: list[fx.Node]) -> None:
        self.call, self._batch = calls[0], found.trace.batch
        self.name = str(self.call.target)
        self.module: Any = found.trace.module(self.call)
        try:
            self.inputs = [sizes.read(dim) for dim in found.input_dims(self.call)]
            maps = [list(map(sizes.read, found.dims(call)[:2])) for call in calls]
        except LookupError as error:
            raise ValueError(
                f"the size of the maps that {self.name} ({type(self.module).__name__}) pools does "
                f"not follow from the strides before it in a way that is understood ({error}); "
                "without it, the multiply-adds of the network are not known"
            ) from error
        # Of rows or patches that have joined the batch there are as many as strides leave.
        moving = [any(size.sources for size in sizes) for sizes in maps]
        self._moving = [sizes for sizes, moves in zip(maps, moving, strict=True) if moves]
        still = [sizes for sizes, moves in zip(maps, moving, strict=True) if not moves]
        self._maps = sum(prod(size.offset for size in sizes) for sizes in still) / self._batch

    def pool(self, known: dict[Hashable, Number], strides: Any) -> list[Axis]:
        """Add the sizes of the pooled map to those that are known.

        Raises:
            VanishedError: if nothing is left to be pooled.
        """
        inputs = [size.at(known) for size in self.inputs]
        sizes = [round(number(size)) for size in inputs]
        if min(sizes) < 1:
            raise VanishedError(f"the map that {self.name!r} pools", min(sizes))
        if strides is None:
            strides = getattr(self.module, "strides", (1.0,))
        smooth = self._per_axis(strides(sizes) if callable(strides) else strides)
        axes = self._plan(sizes, [number(s) for s in smooth])
        for i, (axis, size, stride) in enumerate(zip(axes, inputs, smooth, strict=True)):
            # The slope is that at the stride in use, which limits may have moved.
            in_use = stride + (axis.stride - number(stride))
            unrounded = self._unrounded(size, in_use, axis)
            known[self.call, i] = straight_through(axis.output_size, unrounded)
        # Frozen, an axis is a matrix product whatever its length.
        frozen = isinstance(self.module, FrozenPooling)
        self._products = [(i, 1 if frozen else counted_products(axes[i])) for i in axis_order(axes)]
        return axes

    def cost(self, known: Mapping[Hashable, Number]) -> Number:
        """Multiply-adds of the products along the axes, after `pool`."""
        if isinstance(self.module, BlurPooling):
            outputs = [known[self.call, i] for i in range(len(self.inputs))]
            return prod(outputs) * self._count(known) * self.module.num_taps
        if not isinstance(self.module, (DiffStride, FixedSpectralPooling, FrozenPooling)):
            return 0.0  # averages and Fourier transforms multiply no matrices
        sizes, total = [size.at(known) for size in self.inputs], 0.0
        for i, count in self._products:
            total = total + count * prod(sizes) * known[self.call, i]
            sizes[i] = known[self.call, i]
        return total * self._count(known)

    def _unrounded(self, size: Number, stride: Number, axis: Axis) -> Number:
        """The size that an axis is given, before it is rounded to whole samples."""
        layer = self.module
        if not isinstance(layer, DiffStride) or (layer.cropping and layer.edge == "stopband"):
            return size / stride
        if not layer.cropping or 2 * axis.cutoff >= axis.size:
            return size + 0 * stride  # a slope of zero is one, too
        factor = layer.smoothness_factor
        return size / stride + (2 * factor if axis.transition == factor else size / 2)

    def _count(self, known: Mapping[Hashable, Number]) -> Number:
        """How many maps of one channel are pooled for each sample."""
        moving = sum(prod(size.at(known) for size in sizes) for sizes in self._moving)
        return self._maps + moving / self._batch

    def _per_axis(self, strides: Any) -> list[Number]:
        values = list(strides)
        return values * len(self.inputs) if len(values) == 1 else values

    def _plan(self, sizes: list[int], strides: list[float]) -> list[Axis]:
        if isinstance(self.module, (DiffStride, FixedSpectralPooling)):
            return list(self.module.plan(sizes, strides))
        outputs = zip(sizes, self.module.output_size(sizes), strides, strict=True)
        return [Axis(*values, cutoff=inf, transition=1.0) for values in outputs]
