"""Pool a long axis by fast Fourier transforms instead of the matrix ``A``.

The matrix of a long axis (a second of sound has 16,000 samples) does not fit into memory, and its
product with a line takes ``M N`` multiply-adds. With ``X`` the transform of a line and ``m`` the
gains of the window, the same values are

    y = (M/N) irfft(m X, M),        A^T grad_y = irfft(m h rfft(grad_y), N),

where ``h`` halves the Nyquist bin of an even ``M < N``: it is one bin of ``M`` samples, but two of
``N``. Where an axis is enlarged, an even ``N`` is halved so in the first. Both transforms contain
the bins on the ramp, so the stride's gradient costs nothing extra.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import Axis, window
from diffstride.spectral.cache import as_constant, cached, cached_per_axis, on_device
from diffstride.spectral.matrix import bin_weights
from diffstride.spectral.memory_format import FULL_PRECISION

PerAxis = Callable[[Axis, torch.dtype, torch.device], Tensor]


def fourier_pool(
    axis: Axis, x: Tensor, dim: int, learning: bool = False
) -> tuple[Tensor, Tensor | None]:
    """``A x`` along ``dim`` and, while learning, the bins ``D_r^T x`` on the ramp."""
    if not x.numel():  # torch.fft refuses empty tensors
        on_ramp = _resized(x, dim, 2 * len(axis.ramp)) if learning else None
        return _resized(x, dim, axis.output_size), on_ramp
    bins = _transform(x, dim, axis)
    y = x if axis.is_identity else _synthesis(bins, pool_gains, axis, dim, axis.output_size)
    if not learning:
        return y.to(x.dtype), None
    on_ramp = _ramp(axis, bins, dim) * _along(ramp_weights, axis, bins, dim)
    return y.to(x.dtype), _as_real(on_ramp, dim).to(x.dtype)


def fourier_spread(axis: Axis, grad: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``A^T grad`` along ``dim``, and the bins ``U_r^T grad`` on the ramp."""
    if not grad.numel():
        return _resized(grad, dim, axis.size), _resized(grad, dim, 2 * len(axis.ramp))
    bins = _transform(grad, dim, axis)
    grad_x = grad if axis.is_identity else _synthesis(bins, spread_gains, axis, dim, axis.size)
    return grad_x.to(grad.dtype), _as_real(_ramp(axis, bins, dim), dim).to(grad.dtype)


def _resized(empty: Tensor, dim: int, size: int) -> Tensor:
    """A tensor without elements, of another size along ``dim``."""
    return empty.narrow(dim, 0, 1).expand(*empty.shape[:dim], size, *empty.shape[dim + 1 :])


def _transform(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """The bins that both lengths have, in float32 for half precision: a CPU has no FFT in it."""
    x = x if x.dtype in FULL_PRECISION else x.float()
    return torch.fft.rfft(x, dim=dim).narrow(dim, 0, axis.num_bins)


def _ramp(axis: Axis, bins: Tensor, dim: int) -> Tensor:
    return bins.narrow(dim, axis.ramp.start, len(axis.ramp))


def _as_real(bins: Tensor, dim: int) -> Tensor:
    # First the products with cosines, then those with sines, as from `matrix.ramp_factors`.
    return torch.cat([bins.real, -bins.imag], dim)


def _synthesis(bins: Tensor, gains: PerAxis, axis: Axis, dim: int, size: int) -> Tensor:
    return torch.fft.irfft(bins * _along(gains, axis, bins, dim), n=size, dim=dim)


def _along(gains: PerAxis, axis: Axis, bins: Tensor, dim: int) -> Tensor:
    """Factors of the bins along ``dim``."""
    return gains(axis, bins.real.dtype, bins.device).view(-1, *[1] * (bins.dim() - dim - 1))


@cached_per_axis
def pool_gains(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gains of the bins of ``x`` in those of ``A x``."""
    gains = window(axis) * (axis.output_size / axis.size)
    _halve_nyquist(gains, axis.size, axis.output_size)
    return on_device(gains, device, dtype)


@cached_per_axis
def spread_gains(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gains of the bins of ``grad`` in those of ``A^T grad``."""
    gains = window(axis)
    _halve_nyquist(gains, axis.output_size, axis.size)
    return on_device(gains, device, dtype)


def ramp_weights(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The weights of the bins of ``x`` in those on the ramp."""
    ramp = axis.ramp
    return _weights(axis.size, axis.output_size, ramp.start, ramp.stop, dtype, device)


@as_constant
@cached(256, 32)
def _weights(size: int, output_size: int, start: int, stop: int, *kind: Any) -> Tensor:
    # The key has the bins and not the stride, which moves in every step.
    dtype, device = kind
    return on_device(bin_weights(size, output_size)[start:stop], device, dtype)


def _halve_nyquist(gains: Tensor, size: int, new_size: int) -> None:
    """Halve the last bin where it is one of ``size`` samples, but two of more samples."""
    if size % 2 == 0 and size < new_size:
        gains[-1] /= 2
