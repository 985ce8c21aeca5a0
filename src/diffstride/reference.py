"""The published TensorFlow layers, exactly, on plain torch FFTs: slow.

Use these layers to reproduce published runs and ``diffstride.pooling`` for everything else. As
published,

- the vertical window is not symmetric: frequency ``+k`` has the gain of position ``k`` and ``-k``
  that of ``k - 1``; for an odd height its peak is one bin off zero;
- the horizontal edge is one bin wider than the vertical one;
- the inverse transform is normalised by the output size, so the mean grows by ``H W / (H' W')``;
- `DiffStride` returns even widths, `FixedSpectralPooling` even heights;
- ``forward`` writes the parameter when it raises a stride, and has no gradient outside the limits.
"""

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor, nn

from diffstride import _arguments
from diffstride._arguments import as_strides, refuse_data_format
from diffstride.pooling.base import SizedPooling

Strides = float | Sequence[float]


def _two_strides(strides: Strides) -> tuple[float, float]:
    values = as_strides(strides)
    if len(values) != 2:
        raise ValueError(f"strides must be one number or two (height, width), but got {strides!r}")
    return values


def _map_size(size: Sequence[int]) -> tuple[int, int]:
    if len(size) != 2 or min(size) < 2:
        raise ValueError(f"a map is (height, width), both at least 2, but got {tuple(size)}")
    return size[0], size[1]


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _spectrum(x: Tensor) -> Tensor:
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be a real tensor (batch, channels, height, width), "
            f"but got {x.dtype} of shape {tuple(x.shape)}"
        )
    _map_size(x.shape[2:])
    # Some devices have no FFT in half precision, others only for powers of two.
    return torch.fft.rfft2(_full_precision(x))


def _vertical_positions(height: int) -> Tensor:
    positions = torch.arange(height // 2 + height % 2)
    return torch.cat([positions[height % 2 :].flip(0), positions])


def _clip(value: Tensor, low: float, high: float) -> Tensor:
    # As in TensorFlow, a value exactly on a bound has a gradient. At whole strides both ends of the
    # ramp are on one. Versions of torch.clamp differ there.
    inside = (value >= low) & (value <= high)
    return torch.where(inside, value, value.detach().clamp(low, high))


def _window(edge: Tensor, smoothness_factor: float, positions: Tensor) -> Tensor:
    return _clip((smoothness_factor + edge - positions.to(edge)) / smoothness_factor, 0.0, 1.0)


class FixedSpectralPooling(SizedPooling):
    """Published spectral pooling: keeps the lowest frequencies of a map, without a window.

    ``irfft2`` of the rows ``[0, H'/2)`` and ``[H - H'/2, H)`` and the columns ``[0, floor(W'/2)]``
    of ``rfft2(x)``, with an even height ``H' = max(2, floor(H / s) - floor(H / s) mod 2)`` and the
    width ``W' = max(2, floor(W / s))``.

    Reference: *Spectral Representations for Convolutional Neural Networks*, 2015,
    https://arxiv.org/abs/1506.03767, as published with DiffStride.

    Args:
        strides: strides of height and width, or one for both; finite, at least 1.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, H', W')``.

    Raises:
        ValueError: a stride is below 1, or there are not one or two of them.

    >>> FixedSpectralPooling((2.0, 3.0)).output_size((32, 33))
    (16, 11)
    """

    num_axes = 2

    def __init__(self, strides: Strides = (2.0, 2.0), data_format: None = None) -> None:
        super().__init__()
        refuse_data_format(data_format)
        self.strides = _two_strides(strides)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, int]:
        sizes = torch.tensor(_map_size(input_size), dtype=torch.float32)
        # In float32, as published: there 33 / 1.1 is 30, and in float64 less than 30.
        kept = torch.floor(sizes / torch.tensor(self.strides, dtype=torch.float32))
        height, width = kept.clamp(min=2).int().tolist()
        return height - height % 2, width

    def forward(self, x: Tensor) -> Tensor:
        spectrum = _spectrum(x)
        height, width = self.output_size(x.shape[2:])
        spectrum = spectrum[..., : width // 2 + 1]
        low, high = spectrum[:, :, : height // 2], spectrum[:, :, x.shape[2] - height // 2 :]
        return torch.fft.irfft2(torch.cat([low, high], dim=2), s=(height, width)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"strides={self.strides}"


class DiffStride(SizedPooling):
    """Published DiffStride: a window on a map's spectrum whose edges depend on the strides.

    On each axis ``m(p) = clip((R + T - p) / R, 0, 1)`` with ``T = max(H / s, 2) / 2`` over the
    rows and ``T = max(W / s, 2) / 2 + 1`` over the columns; bins with ``m > 0`` are kept.

    Warning: ``forward`` raises a stride below ``N / (N - R)`` to that value in place, so ``N = R``
    makes it infinite. The raised stride has the ordinary gradient.

    Reference: *Learning Strides in Convolutional Neural Networks*, ICLR 2022,
    https://arxiv.org/abs/2202.01653.

    Args:
        strides: initial strides of height and width, or one for both; finite, at least 1.
        smoothness_factor: width ``R`` of the transition, in frequency bins; above 0.
        cropping: whether bins outside the window are dropped; if not, they are set to zero.
        trainable: whether the strides receive a gradient.
        shared_stride: whether one parameter serves both axes.
        lower_limit_stride: smallest stride used (1 if None); no gradient below it.
        upper_limit_stride: largest stride used (no limit if None); no gradient above it.

    Shape:
        ``(B, C, H, W)`` to ``(B, C, H', W')``; ``W'`` is even.

    Raises:
        ValueError: a stride, the smoothness factor or a limit is out of range.

    >>> DiffStride((2.0, 4.0)).output_size((64, 64))
    (40, 24)
    """

    num_axes = 2

    def __init__(
        self,
        strides: Strides = (2.0, 2.0),
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = None,
        upper_limit_stride: float | None = None,
        data_format: None = None,
    ) -> None:
        super().__init__()
        refuse_data_format(data_format)
        pair = _two_strides(strides)
        if shared_stride and pair[0] != pair[1]:
            raise ValueError(f"shared_stride needs equal strides, but got {strides!r}")
        _arguments.check_window(smoothness_factor, "passband")
        _arguments.check_limits(lower_limit_stride, upper_limit_stride)
        self.smoothness_factor, self.cropping = smoothness_factor, cropping
        self.shared_stride = shared_stride
        self.lower_limit_stride = lower_limit_stride
        self.upper_limit_stride = upper_limit_stride
        initial = torch.tensor(pair[:1] if shared_stride else pair, dtype=torch.float32)
        self.strides = nn.Parameter(initial, requires_grad=trainable)

    @property
    def _limits(self) -> tuple[float, float]:
        return self.lower_limit_stride or 1.0, self.upper_limit_stride or inf

    def _raised(self, size: tuple[int, int]) -> Tensor:
        sizes = self.strides.new_tensor(size)
        smallest = sizes / (sizes - self.smoothness_factor)
        return self.strides.maximum(smallest.amax() if self.shared_stride else smallest)

    def _windows(self, strides: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        strides = _clip(_full_precision(strides), *self._limits)
        (height, width), (down, across) = size, strides.expand(2)
        lower_height = _clip(height / down, 2.0, inf) / 2
        upper_width = _clip(width / across, 2.0, inf) / 2 + 1
        vertical = _window(lower_height, self.smoothness_factor, _vertical_positions(height))
        horizontal = _window(upper_width, self.smoothness_factor, torch.arange(width // 2 + 1))
        return torch.fft.fftshift(vertical), horizontal

    def forward(self, x: Tensor) -> Tensor:
        spectrum = _spectrum(x)
        size = (x.shape[2], x.shape[3])
        with torch.no_grad():
            self.strides.copy_(self._raised(size))
        vertical, horizontal = self._windows(self.strides, size)
        spectrum = spectrum * vertical[:, None] * horizontal
        if self.cropping:
            spectrum = spectrum[:, :, vertical > 0][..., horizontal > 0]
        return torch.fft.irfft2(spectrum).to(x.dtype)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, int]:
        size = _map_size(input_size)
        with torch.no_grad():
            vertical, horizontal = self._windows(self._raised(size), size)
        if not self.cropping:
            return len(vertical), 2 * (len(horizontal) - 1)
        return int((vertical > 0).sum()), 2 * (int((horizontal > 0).sum()) - 1)

    def project_(self) -> None:
        """Clamp the strides to their limits in place, as the published optimiser does at a step."""
        with torch.no_grad():
            self.strides.clamp_(*self._limits)

    def stride_values(self) -> tuple[float, ...]:
        values = self.strides.detach().expand(2).tolist()
        return _arguments.clamp_strides(values, self.lower_limit_stride, self.upper_limit_stride)

    def extra_repr(self) -> str:
        shown = ("smoothness_factor", "cropping", "shared_stride")
        shown += ("lower_limit_stride", "upper_limit_stride")
        options = ", ".join(f"{name}={getattr(self, name)}" for name in shown)
        strides = tuple(self.strides.detach().expand(2).tolist())  # also those that are not finite
        return f"strides={strides}, trainable={self.strides.requires_grad}, {options}"
