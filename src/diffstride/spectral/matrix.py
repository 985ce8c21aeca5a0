"""The real matrix ``A`` that pools one axis, and the factors of its derivative by the stride.

    A[i, j] = (1/N) sum_k g_k m(k) cos(2 pi k (i/M - j/N)),    k = 0 … floor(L/2)

with ``L = min(M, N)``, which is ``M`` but where an axis is enlarged, ``g_0 = 1``, ``g_k = 2`` and
``g_{L/2} = 1`` for even ``L``, and the gains ``m(k)`` of `diffstride.spectral.axis_plan`. The
factor ``1/N`` (and not ``1/M``) keeps the mean of a signal. ``A = U diag(m) D^T`` with tables
``U``, ``D`` of cosines and sines that depend on the two lengths alone.
"""

import math
from typing import Any

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import CPU, Axis, Edge, plan_axis, window
from diffstride.spectral.cache import as_constant, cached, cached_per_axis, on_device


@cached(256, 8)
def synthesis_table(size: int, output_size: int) -> Tensor:
    """``U``, shape ``(M, 2K)``: cosines then sines of ``2 pi k i / M``, ``K = floor(L/2) + 1``."""
    return _waves(output_size, min(size, output_size) // 2 + 1, 1.0)


@cached(256, 8)
def analysis_table(size: int, output_size: int) -> Tensor:
    """``D``, shape ``(N, 2K)``: cosines then sines of ``2 pi k j / N``, times ``g_k / N``."""
    weights = bin_weights(size, output_size)
    return _waves(size, len(weights), weights.repeat(2))


def bin_weights(size: int, output_size: int) -> Tensor:
    """``g_k / N`` of the bins ``k = 0 … floor(L/2)``, float64."""
    shorter = min(size, output_size)
    weights = torch.full((shorter // 2 + 1,), 2.0 / size, dtype=torch.float64, device=CPU)
    weights[0] = 1.0 / size
    if shorter % 2 == 0:
        weights[-1] = 1.0 / size
    return weights


def _waves(length: int, num_bins: int, scale: Tensor | float) -> Tensor:
    # Reducing k i modulo the length first keeps the angle below 2 pi, hence exact to an ulp.
    samples, bins = torch.arange(length, device=CPU), torch.arange(num_bins, device=CPU)
    turns = torch.outer(samples, bins) % length
    angles = turns.to(torch.float64) * (2 * math.pi / length)
    return torch.cat([angles.cos(), angles.sin()], dim=1) * scale


def axis_matrix(axis: Axis) -> Tensor:
    """The real matrix ``A = U diag(m) D^T`` of one axis, ``(M, N)``, float64."""
    gains = window(axis).repeat(2)
    synthesis = synthesis_table(axis.size, axis.output_size)
    return (synthesis * gains) @ analysis_table(axis.size, axis.output_size).T


def pooling_matrix(
    size: int,
    stride: float,
    smoothness_factor: float = 4.0,
    edge: Edge = "stopband",
    cropping: bool = True,
    straight_through: bool = True,
) -> Tensor:
    """The matrix that pools one axis, ``(M, N)``, float64; arguments as for `plan_axis`.

    >>> pooling_matrix(4, 2.0)
    tensor([[0.5000, 0.2500, 0.0000, 0.2500],
            [0.0000, 0.2500, 0.5000, 0.2500]], dtype=torch.float64)
    """
    return axis_matrix(plan_axis(size, stride, smoothness_factor, edge, cropping, straight_through))


def ramp_factors(size: int, output_size: int, ramp: range) -> tuple[Tensor, Tensor]:
    """``U_r``, ``(M, 2r)``, and ``D_r``, ``(N, 2r)``, float64: ``dA/ds = slope * U_r D_r^T``.

    Only the ``r`` bins on the ramp contribute, so the rank is about ``2R``.
    """
    num_bins = min(size, output_size) // 2 + 1
    columns = [*ramp, *(num_bins + k for k in ramp)]
    tables = synthesis_table(size, output_size), analysis_table(size, output_size)
    return tables[0][:, columns], tables[1][:, columns]


# The same in the dtype and on the device of a feature map.


@cached_per_axis
def matrix(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of one axis, computed in float64 and rounded once to ``dtype``."""
    return on_device(axis_matrix(axis), device, dtype)


@cached_per_axis
def adjoint(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A^T``, contiguous."""
    return matrix(axis, dtype, device).T.contiguous()


@cached_per_axis
def halves(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``A`` of even lengths, split into its even and its odd bins: ``(2, M/2, N/2)``.

    Shifted by half an axis, waves of even bins repeat and waves of odd bins change their sign. So
    ``A`` is ``[[E + O, E - O], [E - O, E + O]]``, and ``E`` and ``O`` are returned.
    """
    left, right = axis_matrix(axis)[: axis.output_size // 2].split(axis.size // 2, 1)
    return on_device(torch.stack([left + right, left - right]) / 2, device, dtype)


def analysis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``D_r^T`` of one axis: its product with ``x`` gives the bins on the ramp."""
    ramp = axis.ramp
    return _ramp_factor(axis.size, axis.output_size, ramp.start, ramp.stop, 1, dtype, device)


def synthesis(axis: Axis, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``U_r^T`` of one axis: its product with ``grad_y`` gives the bins on the ramp."""
    ramp = axis.ramp
    return _ramp_factor(axis.size, axis.output_size, ramp.start, ramp.stop, 0, dtype, device)


@as_constant
@cached(256, 32)
def _ramp_factor(*args: Any) -> Tensor:
    # The key has the bins and not the stride: most training steps leave the bins as they are.
    size, output_size, start, stop, which, dtype, device = args
    factors = ramp_factors(size, output_size, range(start, stop))
    return on_device(factors[which].T.contiguous(), device, dtype)
