"""Pool a long axis by fast Fourier transforms instead of the matrix ``A``.

The matrix of a long axis (a second of sound has 16,000 samples) does not fit into memory, and its
product with a line takes ``M N`` multiply-adds. With ``X`` the transform of a line and ``m`` the
gains of the window, the same values are

    y = (M/N) irfft(m X, M),        A^T grad_y = irfft(m h rfft(grad_y), N),

where ``h`` halves the Nyquist bin of an even ``M < N``: it is one bin of ``M`` samples, but two of
``N``. Where an axis is enlarged, an even ``N`` is halved so in the first. Both transforms contain
the bins on the ramp, so the stride's gradient costs nothing extra.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import Axis, window
from diffstride.spectral.cache import as_constant, on_device, outside_modes
from diffstride.spectral.matrix import bin_weights
from diffstride.spectral.memory_format import FULL_PRECISION


def fourier_pool(
    axis: Axis, x: Tensor, dim: int, learning: bool = False
) -> tuple[Tensor, Tensor | None]:
    """``A x`` along ``dim`` and, while learning, the bins ``D_r^T x`` on the ramp."""
    if not x.numel():  # torch.fft refuses empty tensors
        on_ramp = _resized(x, dim, 2 * len(axis.ramp)) if learning else None
        return _resized(x, dim, axis.output_size), on_ramp
    bins = _transform(x, dim, axis)
    y = torch.fft.irfft(bins * _gains(axis, 0, bins, dim), n=axis.output_size, dim=dim)
    if not learning:
        return y.to(x.dtype), None
    on_ramp = _ramp(axis, bins, dim) * _gains(axis, 1, bins, dim)
    return y.to(x.dtype), _as_real(on_ramp, dim).to(x.dtype)


def fourier_spread(axis: Axis, grad: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``A^T grad`` along ``dim``, and the bins ``U_r^T grad`` on the ramp."""
    if not grad.numel():
        return _resized(grad, dim, axis.size), _resized(grad, dim, 2 * len(axis.ramp))
    bins = _transform(grad, dim, axis)
    grad_x = torch.fft.irfft(bins * _gains(axis, 2, bins, dim), n=axis.size, dim=dim)
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


def _gains(axis: Axis, which: int, bins: Tensor, dim: int) -> Tensor:
    """Factors of the bins for ``y`` (0), for the ramp (1) or for the input's gradient (2)."""
    gains = _constant_gains(*tuple(axis), which, bins.real.dtype, bins.device)
    return gains.view(-1, *[1] * (bins.dim() - dim - 1))


@as_constant
@lru_cache(maxsize=64)
@outside_modes
def _constant_gains(*args: Any) -> Tensor:
    *fields, which, dtype, device = args
    axis = Axis(*fields)
    if which == 0:
        gains = window(axis) * (axis.output_size / axis.size)
        _halve_nyquist(gains, axis.size, axis.output_size)
    elif which == 1:
        gains = bin_weights(axis.size, axis.output_size)[list(axis.ramp)]
    else:
        gains = window(axis)
        _halve_nyquist(gains, axis.output_size, axis.size)
    return on_device(gains, device, dtype)


def _halve_nyquist(gains: Tensor, size: int, new_size: int) -> None:
    """Halve the last bin where it is one of ``size`` samples, but two of more samples."""
    if size % 2 == 0 and size < new_size:
        gains[-1] /= 2
