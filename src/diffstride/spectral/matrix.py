"""The real matrix ``A`` that pools one axis, and the factors of its derivative by the stride.

    A[i, j] = (1/N) sum_k g_k m(k) cos(2 pi k (i/M - j/N)),    k = 0 … floor(M/2)

with ``g_0 = 1``, ``g_k = 2`` and ``g_{M/2} = 1`` for even ``M``, and the gains ``m(k)`` of
`diffstride.spectral.axis_plan`. The factor ``1/N`` (and not ``1/M``) keeps the mean: a constant
signal stays what it was. ``A = U diag(m) D^T`` with tables ``U``, ``D`` of cosines and sines that
depend on the two lengths alone.
"""

import math

import torch
from torch import Tensor

from diffstride.spectral.axis_plan import CPU, Axis, plan_axis, window
from diffstride.spectral.cache import cached


@cached(256, 8)
def synthesis_table(size: int, output_size: int) -> Tensor:
    """``U``, shape ``(M, 2K)``: cosines then sines of ``2 pi k i / M``, ``K = floor(M/2) + 1``."""
    return _waves(output_size, output_size // 2 + 1, 1.0)


@cached(256, 8)
def analysis_table(size: int, output_size: int) -> Tensor:
    """``D``, shape ``(N, 2K)``: cosines then sines of ``2 pi k j / N``, times ``g_k / N``."""
    return _waves(size, output_size // 2 + 1, bin_weights(size, output_size).repeat(2))


def bin_weights(size: int, output_size: int) -> Tensor:
    """``g_k / N`` of the bins ``k = 0 … floor(M/2)``, float64."""
    weights = torch.full((output_size // 2 + 1,), 2.0 / size, dtype=torch.float64, device=CPU)
    weights[0] = 1.0 / size
    if output_size % 2 == 0:
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


def ramp_factors(size: int, output_size: int, ramp: range) -> tuple[Tensor, Tensor]:
    """The derivative of the matrix by the stride, in factors: ``dA/ds = slope * U_r D_r^T``.

    Only the bins on the ramp contribute, so the rank is about ``2R``. Returns ``U_r`` of shape
    ``(M, 2r)`` and ``D_r`` of shape ``(N, 2r)``, float64.
    """
    num_bins = output_size // 2 + 1
    columns = [*ramp, *(num_bins + k for k in ramp)]
    return (
        synthesis_table(size, output_size)[:, columns],
        analysis_table(size, output_size)[:, columns],
    )


def pooling_matrix(
    size: int,
    stride: float,
    smoothness_factor: float = 4.0,
    edge: str = "stopband",
    cropping: bool = True,
    straight_through: bool = True,
) -> Tensor:
    """The matrix that pools one axis, ``(M, N)``, float64; arguments as for `plan_axis`.

    >>> pooling_matrix(4, 2.0)
    tensor([[0.5000, 0.2500, 0.0000, 0.2500],
            [0.0000, 0.2500, 0.5000, 0.2500]], dtype=torch.float64)
    """
    return axis_matrix(plan_axis(size, stride, smoothness_factor, edge, cropping, straight_through))
