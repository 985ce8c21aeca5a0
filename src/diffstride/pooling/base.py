"""Base classes of the pooling layers: the sizes and the cost that the analysis asks for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffstride._arguments import check_input, check_input_size, pooled_sizes
from diffstride.spectral.autograd import pool
from diffstride.spectral.axis_plan import Axis, FixedLength, WindowSettings
from diffstride.spectral.map_product import multiply_adds

Plan = tuple[Axis, ...]
Lengths = Sequence[float]  # of the spatial axes


class SizedPooling(nn.Module):
    """Base class of pooling layers, which keep batch and channels and know their output's size.

    The analysis of a network never runs such a layer: it calls `output_size`, `plan` and
    `multiply_adds`. A subclass sets ``num_axes``, the number of spatial axes, and implements at
    least `output_size`.
    """

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    num_axes: int
    fixed_size: tuple[int | None, ...] | None = None
    """The length of each axis that has one whatever comes in, None for others; None if none has."""
    loaded_with: list[str] | None = None
    """The list of errors of the last `load_state_dict` that has loaded the layer."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        if any(name.startswith(prefix) for name in state_dict):
            self.loaded_with = others[-1]

    @property
    def fixed_axes(self) -> tuple[int, ...]:
        """The axes that have one length, whatever comes in."""
        return tuple(i for i, each in enumerate(self.fixed_size or ()) if each is not None)

    @property
    def kept_axes(self) -> tuple[int, ...]:
        """The axes that keep the length that comes in, at all strides that the layer allows."""
        return ()

    @property
    def fixes_size(self) -> bool:
        """Whether no stride that may change sets the length of any axis."""
        return len({*self.fixed_axes, *self.kept_axes}) == self.num_axes

    @property
    def learns_size(self) -> bool:
        """Whether learnable strides change the size of the output.

        A layer that returns true needs what a `CostBudget` reads and writes, as `DiffStride` has
        it: the parameter ``strides``, ``limits``, ``axis_settings``, ``has_stride_gradient`` and
        ``write_``.
        """
        return False

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for a map of ``input_size``."""
        raise NotImplementedError(
            f"{type(self).__name__} must define output_size(input_size), like every SizedPooling"
        )

    def stride_values(self) -> tuple[float, ...]:
        """The strides as Python numbers, one per axis; ones if the layer has no strides."""
        return tuple(getattr(self, "strides", (1.0,) * self.num_axes))

    def plan(self, input_size: Sequence[int], strides: Sequence[float] | None = None) -> Plan:
        """How each axis of a map of ``input_size`` is pooled, by the layer's strides or others.

        Of a class that overrides this, `MultiplyAdds` computes the cost at other strides, too.
        """
        check_input_size(self, input_size)
        outputs = self.output_size(input_size)
        values = self.stride_values() if strides is None else strides
        return tuple(map(Axis, input_size, outputs, values))

    def size_slopes(self, axis: Axis) -> tuple[float, float]:
        """The derivatives of an axis's output length ``N/s``, unrounded, by ``N`` and by ``s``.

        Of axes that are neither fixed nor kept.
        """
        return 1 / axis.stride, -axis.size / axis.stride**2

    def multiply_adds(self, axes: Sequence[Axis], sizes: Lengths, output_sizes: Lengths) -> float:
        """Multiply-adds of pooling one channel of one sample; 0 if none are counted.

        The lengths may lie half a sample beside those of ``axes``, for the slopes of the cost.
        """
        return 0.0


class SpectralPooling(SizedPooling):
    """Base class of pooling layers that pool each axis by one matrix, as `plan` says."""

    has_matrices = True  # of its plan, by which it can be frozen
    window_settings = WindowSettings()
    """The arguments of `diffstride.spectral.plan_axis` that follow size and stride."""

    @property
    def axis_settings(self) -> tuple[WindowSettings | FixedLength, ...]:
        """For each axis, the `window_settings` or its fixed length; both plan an axis."""
        window, fixed_size = self.window_settings, self.fixed_size or (None,) * self.num_axes
        return tuple(window if each is None else FixedLength(each) for each in fixed_size)

    def plan(self, input_size: Sequence[int], strides: Sequence[float] | None = None) -> Plan:
        check_input_size(self, input_size)
        values = self.stride_values() if strides is None else strides
        each = zip(self.axis_settings, input_size, values, strict=True)
        return tuple(settings.plan(size, stride) for settings, size, stride in each)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        return pool(x, self.plan(pooled_sizes(x, self.num_axes)))

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the output for a map of ``input_size``.

        >>> from diffstride import DiffStride, FixedSpectralPooling
        >>> DiffStride(2.0).output_size((32, 32)), FixedSpectralPooling(1.5).output_size((32, 32))
        ((16, 16), (22, 22))
        """
        return tuple(axis.output_size for axis in self.plan(input_size))

    def multiply_adds(self, axes: Sequence[Axis], sizes: Lengths, output_sizes: Lengths) -> float:
        return multiply_adds(axes, sizes, output_sizes)
