"""The base class of all pooling layers: what the analysis of a network asks a layer for."""

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from torch import nn

from diffstride._arguments import check_input_size
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.map_product import multiply_adds

if TYPE_CHECKING:
    from diffstride.pooling.frozen import FrozenPooling


class SizedPooling(nn.Module):
    """A pooling layer that keeps batch and channels, and knows the size and cost of its output.

    The analysis of a network never runs such a layer: it asks for `output_size`, `plan` and
    `multiply_adds`. A method of that name in another module has another meaning and does not count.
    A subclass sets ``num_axes``, the number of spatial axes, and has at least `output_size`.
    """

    num_axes: int

    @property
    def learns_size(self) -> bool:
        """Whether strides learn that change the size of the output."""
        return False

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for a map of ``input_size``."""
        raise NotImplementedError(f"{type(self).__name__} has no method output_size")

    def stride_values(self) -> tuple[float, ...]:
        """The strides as Python numbers, one per axis; ones if the layer has no strides."""
        return tuple(getattr(self, "strides", (1.0,) * self.num_axes))

    def plan(
        self, input_size: Sequence[int], strides: Sequence[float] | None = None
    ) -> tuple[Axis, ...]:
        """How each axis of a map of ``input_size`` is pooled.

        Args:
            input_size: lengths of the spatial axes.
            strides: strides to use instead of the layer's own, for layers whose strides learn.
        """
        check_input_size(self, input_size)
        outputs = self.output_size(input_size)
        values = self.stride_values() if strides is None else strides
        lengths = zip(input_size, outputs, values, strict=True)
        return tuple(Axis(*each, cutoff=inf, transition=1.0) for each in lengths)

    def unrounded_size(self, size: Any, stride: Any, axis: Axis) -> Any:
        """The output length of an axis before it is rounded to whole samples.

        Args:
            size: input length, a number or a scalar tensor.
            stride: likewise; the result is differentiable in both.
            axis: the plan of the axis at these values.
        """
        return size / stride

    def multiply_adds(
        self, axes: Sequence[Axis], sizes: Sequence[Any], output_sizes: Sequence[Any]
    ) -> Any:
        """Multiply-adds of pooling one channel of one sample; 0 if the layer multiplies nothing.

        Args:
            axes: the plan of each axis.
            sizes, output_sizes: its lengths as numbers or scalar tensors.
        """
        return 0.0


class SpectralPooling(SizedPooling):
    """A pooling layer that is one matrix product per axis: its sizes and its cost."""

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for a map of ``input_size``.

        >>> from diffstride import DiffStride, FixedSpectralPooling
        >>> DiffStride(2.0).output_size((32, 32)), FixedSpectralPooling(1.5).output_size((32, 32))
        ((16, 16), (22, 22))
        """
        return tuple(axis.output_size for axis in self.plan(input_size))

    def multiply_adds(
        self, axes: Sequence[Axis], sizes: Sequence[Any], output_sizes: Sequence[Any]
    ) -> Any:
        return multiply_adds(axes, sizes, output_sizes)

    def frozen(self, round_to: float | None = None) -> "FrozenPooling":
        """A layer of the same strides as constants: see `diffstride.freeze`."""
        raise NotImplementedError(f"{type(self).__name__} has no method frozen")
