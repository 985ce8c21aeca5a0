"""Spectral pooling to a fixed map size."""

from collections.abc import Sequence

from diffstride._arguments import as_lengths
from diffstride.pooling.base import SpectralPooling


class AdaptiveSpectralPooling(SpectralPooling):
    """Pooling to a fixed map size, whatever comes in: the spectral `torch.nn.AdaptiveAvgPool2d`.

    ``y = A x`` with all gains 1 and ``M`` samples per axis. Where ``M`` is smaller than the length
    ``N`` of the axis, its spectrum is cropped; where ``M`` is larger, it is padded with zeros. So
    layers behind it that accept maps of one size only, such as a linear layer on a flattened map,
    leave the strides before it free to learn.

    Args:
        output_size: the length of each axis, in samples; None for an axis that keeps the length
            that comes in. A single number means two axes.

    Shape:
        ``(B, C, N_1, …, N_n)`` to ``(B, C, M_1, …, M_n)``.

    Raises:
        ValueError: if a length is no whole number of at least 1, or the input has another number
            of spatial axes.

    >>> import torch
    >>> pool = AdaptiveSpectralPooling((5, 5))
    >>> pool(torch.ones(1, 3, 9, 10)).shape, pool(torch.ones(1, 3, 4, 5)).shape
    (torch.Size([1, 3, 5, 5]), torch.Size([1, 3, 5, 5]))
    >>> AdaptiveSpectralPooling((1, None))(torch.ones(1, 3, 9, 10)).shape
    torch.Size([1, 3, 1, 10])
    """

    def __init__(self, output_size: Sequence[int | None] | int) -> None:
        super().__init__()
        sizes = output_size if isinstance(output_size, Sequence) else (output_size,) * 2
        self.fixed_size: tuple[int | None, ...] = as_lengths(sizes, "output_size")
        if not self.fixed_axes:
            raise ValueError(f"output_size must fix the length of an axis, but got {output_size!r}")
        self.num_axes = len(self.fixed_size)

    @property
    def kept_axes(self) -> tuple[int, ...]:
        return tuple(i for i, each in enumerate(self.fixed_size) if each is None)

    def extra_repr(self) -> str:
        return f"output_size={self.fixed_size}"
