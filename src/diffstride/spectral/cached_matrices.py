"""The matrices of an axis where they are used, each computed once.

They are functions of a few numbers. Small caches hold those in use: in training the last steps',
in evaluation those of every layer, so that nothing is computed twice.
"""

from typing import Any

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.cache import as_constant, cached
from diffstride.spectral.matrix import axis_matrix, ramp_factors


def matrix(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of one axis where ``x`` is, formed in float64 and rounded once."""
    return _matrix(*tuple(axis), dtype, device)


@as_constant
@cached(256, 32)
def _matrix(*args: Any) -> Tensor:
    *fields, dtype, device = args
    return axis_matrix(Axis(*fields)).to(device, dtype)


def halves(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of even lengths by its even and its odd bins, ``(2, M/2, N/2)``.

    Half a line further even bins are what they were and odd bins change their sign. So ``A`` is
    ``[[E + O, E - O], [E - O, E + O]]`` with the two matrices ``E`` and ``O`` returned.
    """
    return _halves(*tuple(axis), dtype, device)


@as_constant
@cached(64, 32)
def _halves(*args: Any) -> Tensor:
    *fields, dtype, device = args
    axis = Axis(*fields)
    left, right = axis_matrix(axis)[: axis.output_size // 2].split(axis.size // 2, 1)
    return (torch.stack([left + right, left - right]) / 2).to(device, dtype)


def adjoint(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A^T``, laid out for products of its own."""
    return _adjoint(*tuple(axis), dtype, device)


@as_constant
@cached(256, 32)
def _adjoint(*args: Any) -> Tensor:
    return _matrix(*args).T.contiguous()


def analysis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``D_r^T`` of one axis where ``x`` is."""
    return _ramp_factor(axis.size, axis.output_size, *_ends(axis.ramp), 1, dtype, device)


def synthesis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``U_r^T`` of one axis where ``grad_y`` is."""
    return _ramp_factor(axis.size, axis.output_size, *_ends(axis.ramp), 0, dtype, device)


def _ends(ramp: range) -> tuple[int, int]:
    return ramp.start, ramp.stop


@as_constant
@cached(256, 32)
def _ramp_factor(*args: Any) -> Tensor:
    # Keyed by the bins and not by the stride: most steps move no bin onto or off the ramp.
    size, output_size, start, stop, which, dtype, device = args
    factors = ramp_factors(size, output_size, range(start, stop))
    return factors[which].T.to(device, dtype).contiguous()
