"""Spectral pooling with fixed strides."""

from collections.abc import Sequence

from diffstride import _arguments
from diffstride._stride_text import strides_text
from diffstride.pooling.base import SpectralPooling


class FixedSpectralPooling(SpectralPooling):
    """Pooling with fixed strides that crops the spectrum: `spectral_pool` as a layer.

    ``y = A x`` with all gains 1 and ``M = ceil(N / s)`` samples per axis.

    Reference: *Spectral Representations for Convolutional Neural Networks*, NeurIPS 2015,
    https://arxiv.org/abs/1506.03767.

    Args:
        strides: strides, each at least 1, may be fractional; a single number means two axes.
        data_format: refused; an argument of the published layer.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, ceil(N_1 / s_1), …, ceil(N_n / s_n))``.

    Raises:
        ValueError: if a stride is below 1, or the input has another number of spatial axes.

    >>> import torch
    >>> FixedSpectralPooling(2)(torch.ones(1, 3, 32, 31)).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(
        self, strides: Sequence[float] | float = (2.0, 2.0), data_format: None = None
    ) -> None:
        super().__init__()
        _arguments.refuse_data_format(data_format)
        self.strides = _arguments.as_strides(strides)
        self.num_axes = len(self.strides)

    @property
    def kept_axes(self) -> tuple[int, ...]:
        return tuple(i for i, stride in enumerate(self.strides) if stride == 1)

    def extra_repr(self) -> str:
        return f"strides=({strides_text(self.strides, form='.4g', between=', ')})"
