"""Spectral pooling with fixed strides."""

from collections.abc import Sequence

from torch import Tensor

from diffstride._arguments import as_strides, check_input, check_input_size
from diffstride.functional import spectral_pool
from diffstride.pooling.base import SizedPooling
from diffstride.spectral.axis_plan import Axis, plan_spectral_axis


class FixedSpectralPooling(SizedPooling):
    """Pooling with fixed strides that crops the spectrum: `spectral_pool` as a layer.

    ``y = A x`` with all gains 1 and ``M = ceil(N / s)`` samples per axis.

    Reference: *Spectral Representations for Convolutional Neural Networks*, NeurIPS 2015,
    https://arxiv.org/abs/1506.03767.

    Args:
        strides: strides, each at least 1, may be fractional; a single number means two axes.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, ceil(N_1 / s_1), …, ceil(N_n / s_n))``.

    Raises:
        ValueError: if a stride is below 1, or the input has another number of axes.

    >>> import torch
    >>> FixedSpectralPooling(2)(torch.ones(1, 3, 32, 31)).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(self, strides: Sequence[float] | float = (2.0, 2.0)) -> None:
        super().__init__()
        self.strides = as_strides(strides)
        self.num_axes = len(self.strides)

    def forward(self, x: Tensor) -> Tensor:
        check_input(self, x)
        return spectral_pool(x, self.strides)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """The spatial size of the map that comes out for one of ``input_size``.

        >>> FixedSpectralPooling(1.5).output_size((32, 32))
        (22, 22)
        """
        return tuple(axis.output_size for axis in self.plan(input_size))

    def plan(
        self, input_size: Sequence[int], strides: Sequence[float] | None = None
    ) -> tuple[Axis, ...]:
        """How each axis of a map of ``input_size`` is pooled, by the layer's strides or others."""
        check_input_size(self, input_size)
        values = self.strides if strides is None else strides
        return tuple(map(plan_spectral_axis, input_size, values))

    def extra_repr(self) -> str:
        return f"strides=({', '.join(f'{value:.4g}' for value in self.strides)})"
