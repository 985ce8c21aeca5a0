"""The matrices of an axis in the dtype and on the device where they are used, cached.

They are functions of a few numbers. The caches hold the matrices of the last training steps, or in
evaluation those of every layer.
"""

from typing import Any

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.cache import as_constant, cached
from diffstride.spectral.matrix import axis_matrix, ramp_factors


def matrix(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of one axis, computed in float64 and rounded once to ``dtype``."""
    return _matrix(*tuple(axis), dtype, device)


@as_constant
@cached(256, 32)
def _matrix(*args: Any) -> Tensor:
    *fields, dtype, device = args
    return axis_matrix(Axis(*fields)).to(device, dtype)


def halves(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of even lengths by its even and its odd bins, ``(2, M/2, N/2)``.

    Half an axis further on, even bins have the same value and odd bins the opposite one. So ``A``
    is ``[[E + O, E - O], [E - O, E + O]]``, and ``E`` and ``O`` are returned.
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
    """``A^T``, contiguous."""
    return _adjoint(*tuple(axis), dtype, device)


@as_constant
@cached(256, 32)
def _adjoint(*args: Any) -> Tensor:
    return _matrix(*args).T.contiguous()


def analysis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``D_r^T`` of one axis: its product with ``x`` gives the bins on the ramp."""
    return _ramp_factor(axis.size, axis.output_size, *_ends(axis.ramp), 1, dtype, device)


def synthesis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``U_r^T`` of one axis: its product with ``grad_y`` gives the bins on the ramp."""
    return _ramp_factor(axis.size, axis.output_size, *_ends(axis.ramp), 0, dtype, device)


def _ends(ramp: range) -> tuple[int, int]:
    return ramp.start, ramp.stop


@as_constant
@cached(256, 32)
def _ramp_factor(*args: Any) -> Tensor:
    # The key has the bins and not the stride: most training steps leave the bins as they are.
    size, output_size, start, stop, which, dtype, device = args
    factors = ramp_factors(size, output_size, range(start, stop))
    return factors[which].T.to(device, dtype).contiguous()
